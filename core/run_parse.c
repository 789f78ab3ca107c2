// Reads a run file and its overrides into struct tsr_run, and reports every mistake of both.
#include "core/run_private.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"

enum { MAX_RUN_FILE_BYTES = 1 << 20, MAX_MISTAKES = 100 };

void tsr_mistake(struct tsr_reader *rd, struct tsr_mark at, const char *fmt, ...) {
    char text[700];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (rd->n_mistakes++ >= MAX_MISTAKES)
        return;
    int rc = rd->n_mistakes > 1 ? tsr_buf_append(&rd->mistakes, "\n", 1) : 0;
    if (rc == 0 && at.argument > 0)
        rc = tsr_buf_printf(&rd->mistakes, "`%.80s`: %s", rd->overrides[at.argument - 1], text);
    else if (rc == 0 && at.argument == 0)
        rc = tsr_buf_printf(&rd->mistakes, "%s:%d:%d: %s", rd->file, at.line, at.col, text);
    else if (rc == 0)
        rc = tsr_buf_printf(&rd->mistakes, "%s: %s", rd->file, text);
    rd->no_memory |= rc < 0;
}

// The text of a failure has a limited length, so what doesn't fit is cut at a line and counted.
int tsr_reader_finish(struct tsr_reader *rd) {
    int rc = 0;
    if (rd->no_memory) {
        rc = tsr_fail(TSR_ENOMEM, "%s: out of memory", rd->file);
    } else if (rd->n_mistakes > 0) {
        char *text = rd->mistakes.data;
        int n_shown = rd->n_mistakes < MAX_MISTAKES ? rd->n_mistakes : MAX_MISTAKES;
        for (char *end; strlen(text) > TSR_ERROR_TEXT - 100 && (end = strrchr(text, '\n'));
             n_shown--)
            *end = 0;
        int n_left = rd->n_mistakes - n_shown;
        enum tsr_code code = rd->is_usage ? TSR_EUSAGE : TSR_ECONFIG;
        rc = n_left > 0 ? tsr_fail(code, "%s\n%s: and %d more mistakes", text, rd->file, n_left)
                        : tsr_fail(code, "%s", text);
    }
    tsr_buf_free(&rd->mistakes);
    return rc;
}

char *tsr_reader_path(struct tsr_reader *rd, struct tsr_mark at, const char *path) {
    char base[TSR_PATH_MAX], out[TSR_PATH_MAX];
    strcpy(base, rd->base);
    for (;;) { // the base has no links in it, so its ".." is its parent
        if (strncmp(path, "./", 2) == 0) {
            path += 2;
        } else if (strncmp(path, "../", 3) == 0 && strrchr(base, '/')) {
            path += 3;
            *strrchr(base, '/') = 0;
        } else {
            break;
        }
        path += strspn(path, "/");
    }
    if (tsr_path_join(out, *base ? base : "/", path) < 0) {
        tsr_mistake(rd, at, "%s", tsr_error_text());
        return NULL;
    }
    char *copy = strdup(out);
    rd->no_memory |= !copy;
    return copy;
}

// The nearest key of the section, else a field of that name in another section, else the list of
// what the section has.
static void unknown_key(struct tsr_reader *rd, struct tsr_mark at, const char *path) {
    const char *known[TSR_N_FIELDS];
    char names[TSR_N_FIELDS][40], list[900] = "";
    const char *dot = strrchr(path, '.'), *word = dot ? dot + 1 : path;
    size_t n_prefix = dot ? (size_t)(dot - path) + 1 : 0, at_list = 0;
    int n = 0;
    for (int i = 0; i < TSR_N_FIELDS; i++) {
        const char *rest = tsr_fields[i].path + n_prefix;
        if (strncmp(tsr_fields[i].path, path, n_prefix) != 0)
            continue;
        snprintf(names[n], sizeof names[n], "%.*s", (int)strcspn(rest, "."), rest);
        if (n > 0 && strcmp(names[n], names[n - 1]) == 0)
            continue;
        at_list += (size_t)snprintf(list + at_list, sizeof list - at_list, "%s%s", n ? ", " : "",
                                    names[n]);
        known[n] = names[n];
        n++;
    }
    const char *near = tsr_nearest(word, known, n);
    if (near) {
        tsr_mistake(rd, at, "%.120s: unknown key; did you mean %.*s%s?", path, (int)n_prefix, path,
                    near);
        return;
    }
    for (int i = 0; i < TSR_N_FIELDS; i++) {
        const char *last = strrchr(tsr_fields[i].path, '.') + 1;
        if (tsr_nearest(word, &last, 1)) {
            tsr_mistake(rd, at, "%.120s: unknown key; did you mean %s?", path, tsr_fields[i].path);
            return;
        }
    }
    tsr_mistake(rd, at, "%.120s: unknown key; expected one of %s", path, list);
}

static void apply_pair(struct tsr_reader *rd, const yaml_node_t *key, const yaml_node_t *value,
                       void *arg) {
    const char *outer = arg;
    char path[200];
    snprintf(path, sizeof path, "%s%s%.100s", outer, *outer ? "." : "", tsr_yaml_text(key));
    if (strchr(tsr_yaml_text(key), '.')) {
        tsr_mistake(rd, tsr_mark_of(rd, key),
                    "%s: unknown key; only arguments join names by dots, in a file each stands "
                    "below its section",
                    path);
        return;
    }
    tsr_reader_apply(rd, path, tsr_mark_of(rd, key), value);
}

void tsr_reader_apply(struct tsr_reader *rd, const char *path, struct tsr_mark at,
                      const yaml_node_t *value) {
    int field = tsr_field_find(path);
    char found[100];
    if (field >= 0) {
        tsr_field_set(rd, field, value);
    } else if (*path && !tsr_field_is_section(path)) {
        unknown_key(rd, at, path);
    } else if (value->type == YAML_MAPPING_NODE) {
        tsr_yaml_each_pair(rd, value, path, apply_pair, (void *)path);
    } else if (!tsr_yaml_is_null(value)) {
        tsr_mistake(rd, tsr_mark_of(rd, value), "%s%sexpected a mapping of keys, found %s", path,
                    *path ? ": " : "", tsr_yaml_describe(value, found));
    }
}

int tsr_run_reader_open(struct tsr_reader *rd, struct tsr_run *r, const char *file,
                        const char *base) {
    *rd = (struct tsr_reader){.r = r, .file = file};
    *r = (struct tsr_run){0};
    TSR_ASSERT(strlen(base) < sizeof rd->base);
    strcpy(rd->base, base);
    for (int i = 0; i < TSR_N_FIELDS; i++) {
        rd->marks[i].argument = -1;
        TSR_TRY(tsr_field_reset(r, &tsr_fields[i]));
    }
    return 0;
}

void tsr_reader_text(struct tsr_reader *rd, const char *text, size_t n_bytes) {
    yaml_document_t doc;
    if (n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { // a byte order mark
        text += 3;
        n_bytes -= 3;
    }
    rd->nothing = !tsr_yaml_compose(rd, text, n_bytes, &doc);
    if (rd->nothing)
        return;
    const yaml_node_t *root = yaml_document_get_root_node(&doc);
    rd->doc = &doc;
    rd->nothing = !root || root->type != YAML_MAPPING_NODE;
    if (root && !tsr_yaml_is_null(root))
        tsr_reader_apply(rd, "", tsr_mark_of(rd, root), root);
    else
        tsr_mistake(rd, (struct tsr_mark){rd->argument, 1, 1}, "the file is empty");
    rd->doc = NULL;
    yaml_document_delete(&doc);
}

// The folder of `path` without links, or the current folder for NULL.
static int base_of(char out[static TSR_PATH_MAX], const char *path) {
    char dir[TSR_PATH_MAX] = ".", real[PATH_MAX];
    if (path)
        TSR_TRY(tsr_path_dir(dir, path));
    if (!realpath(dir, real))
        return tsr_fail_errno(errno, "cannot find the folder", dir);
    return tsr_path_join(out, real, "");
}

static int read_all(struct tsr_reader *rd, const char *const *overrides, int n_overrides) {
    char *text;
    size_t n_bytes;
    TSR_TRY(tsr_read_file(rd->file, MAX_RUN_FILE_BYTES, TSR_ECONFIG, &text, &n_bytes));
    tsr_reader_text(rd, text, n_bytes);
    free(text);
    rd->overrides = overrides;
    TSR_TRY(base_of(rd->base, NULL));
    for (int i = 0; i < n_overrides; i++)
        tsr_reader_override(rd, i);
    rd->argument = 0;
    return 0;
}

// What a field has when it isn't given, where that depends on others.
static int derive(struct tsr_reader *rd, const char *file_base) {
    struct tsr_run *r = rd->r;
    const char *name = tsr_path_base(rd->file), *dot = strrchr(name, '.');
    char path[TSR_PATH_MAX];
    size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name);
    if (!r->run.name && !(r->run.name = strndup(name, n)))
        rd->no_memory = true;
    if (!r->run.dir && r->run.name) {
        TSR_TRY(tsr_path_join(path, file_base, "runs"));
        TSR_TRY(tsr_path_join(path, path, r->run.name + strspn(r->run.name, "/")));
        rd->no_memory |= !(r->run.dir = strdup(path));
    }
    if (!r->model.tokenizer && r->model.from) {
        TSR_TRY(tsr_path_join(path, r->model.from, "tokenizer.json"));
        if (tsr_path_exists(path))
            rd->no_memory |= !(r->model.tokenizer = strdup(r->model.from));
    }
    if (r->parallel.schedule != TSR_PIPE_INTERLEAVED)
        r->parallel.chunks = 1;
    return 0;
}

int tsr_run_load(struct tsr_run *r, const char *path, const char *const *overrides,
                 int n_overrides) {
    char base[TSR_PATH_MAX];
    struct tsr_reader rd;
    *r = (struct tsr_run){0};
    if (!tsr_path_exists(path))
        return tsr_fail(TSR_ECONFIG, "%s: expected a run file, found nothing", path);
    TSR_TRY(base_of(base, path));
    int rc = tsr_run_reader_open(&rd, r, path, base);
    if (rc == 0)
        rc = read_all(&rd, overrides, n_overrides);
    if (rc == 0 && !rd.no_memory)
        rc = derive(&rd, base);
    if (rc == 0 && !rd.no_memory && !rd.nothing)
        tsr_run_check(&rd);
    if (rc == 0)
        rc = tsr_reader_finish(&rd);
    else
        tsr_buf_free(&rd.mistakes);
    if (rc < 0)
        tsr_run_free(r);
    return rc;
}

void tsr_run_free(struct tsr_run *r) {
    for (int i = 0; i < TSR_N_FIELDS; i++)
        tsr_field_free(r, &tsr_fields[i]);
    *r = (struct tsr_run){0};
}
