// The run as YAML, and a run against the one that a checkpoint was made by.
#include "core/run_private.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

// How many leading bytes, up to and with a dot, two paths share.
static size_t shared_section(const char *a, const char *b) {
    size_t shared = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '.')
            shared = i + 1;
    return shared;
}

int tsr_run_dump(const struct tsr_run *r, struct tsr_buf *out) {
    const char *last = "";
    for (int i = 0; i < TSR_N_FIELDS; i++) {
        const struct tsr_field *f = &tsr_fields[i];
        size_t at = shared_section(f->path, last);
        int depth = 0;
        for (size_t c = 0; c < at; c++)
            depth += f->path[c] == '.';
        for (const char *dot; (dot = strchr(f->path + at, '.')); depth++) {
            int n = (int)(dot - f->path - (ptrdiff_t)at);
            TSR_TRY(tsr_buf_printf(out, "%*s%.*s:\n", 2 * depth, "", n, f->path + at));
            at += (size_t)n + 1;
        }
        TSR_TRY(tsr_buf_printf(out, "%*s%s: ", 2 * depth, "", f->path + at));
        TSR_TRY(tsr_field_print(r, f, out));
        TSR_TRY(tsr_buf_append(out, "\n", 1));
        last = f->path;
    }
    return 0;
}

static bool same_json(const char *a, const char *b) {
    json_t *x = a ? json_loads(a, 0, NULL) : NULL, *y = b ? json_loads(b, 0, NULL) : NULL;
    bool same = (!a && !b) || (x && y && json_equal(x, y));
    json_decref(x);
    json_decref(y);
    return same;
}

// Derived values are compared as what they come to; without `exact` they follow the layout.
static struct tsr_run resolved(const struct tsr_run *r) {
    struct tsr_run x = *r;
    x.parallel.virtual_shards = x.parallel.virtual_replicas = 0;
    if (x.parallel.exact)
        tsr_run_pieces(r, 1, 1, &x.parallel.virtual_shards, &x.parallel.virtual_replicas);
    return x;
}

static int compare(const struct tsr_run *now, const struct tsr_run *then, const char *where) {
    struct tsr_buf text = {0}, a = {0}, b = {0};
    struct tsr_run x = resolved(now), y = resolved(then);
    int rc = 0;
    for (int i = 0; i < TSR_N_FIELDS && rc == 0; i++) {
        const struct tsr_field *f = &tsr_fields[i];
        if (!f->fixed)
            continue;
        a.len = b.len = 0;
        rc = tsr_field_print(&x, f, &a);
        if (rc == 0)
            rc = tsr_field_print(&y, f, &b);
        if (rc < 0 || strcmp(a.data, b.data) == 0)
            continue;
        if (f->type == TSR_FIELD_JSON &&
            same_json(*(char **)tsr_field_at(f, &x), *(char **)tsr_field_at(f, &y)))
            continue;
        rc = tsr_buf_printf(&text,
                            "%s%s: %s can't change on resuming: %.200s in the checkpoint, %.200s "
                            "now",
                            text.len ? "\n" : "", where, f->path, b.data, a.data);
    }
    if (rc == 0 && text.len > 0)
        rc = tsr_fail(TSR_ECONFIG, "%s", text.data);
    tsr_buf_free(&text);
    tsr_buf_free(&a);
    tsr_buf_free(&b);
    return rc;
}

int tsr_run_check_resume(const struct tsr_run *r, const char *stamped_yaml, const char *where) {
    struct tsr_run then;
    struct tsr_reader rd;
    int rc = tsr_run_reader_open(&rd, &then, where, "/");
    if (rc == 0) {
        tsr_reader_text(&rd, stamped_yaml, strlen(stamped_yaml));
        rc = tsr_reader_finish(&rd);
    }
    if (rc == 0)
        rc = compare(r, &then, where);
    tsr_run_free(&then);
    return rc;
}
