#include "launcher/layout_check.h"

#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "launcher/child.h"

static const char *const free_fields[] = {"train.micro_batch", "train.recompute", "device.threads"};
enum { N_FREE_FIELDS = sizeof free_fields / sizeof *free_fields };

// The section of a field that is named without it.
static const char *section_of(const char *key, size_t n) {
    for (int i = 0; i < N_FREE_FIELDS; i++) {
        const char *dot = strchr(free_fields[i], '.');
        if (strlen(dot + 1) == n && strncmp(dot + 1, key, n) == 0)
            return dot - free_fields[i] == 5 ? "train." : "device.";
    }
    return "parallel.";
}

// What may differ between the sides: fields that must not change a bit.
static bool may_differ(const char *field) {
    static const char *const fixed[] = {"parallel.exact", "parallel.virtual_shards",
                                        "parallel.virtual_replicas", "parallel.elastic"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (strcmp(field, fixed[i]) == 0)
            return false;
    for (int i = 0; i < N_FREE_FIELDS; i++)
        if (strcmp(field, free_fields[i]) == 0)
            return true;
    return strncmp(field, "parallel.", 9) == 0;
}

static int add_field(struct tsr_check *c, const char *item, size_t n) {
    char field[64];
    const char *eq = memchr(item, '=', n);
    size_t n_key = eq ? (size_t)(eq - item) : 0;
    bool whole = eq && memchr(item, '.', n_key);
    if (!eq || n_key == 0 || n_key > 40 || n > 100)
        return tsr_fail(TSR_EUSAGE,
                        "--against: expected fields like tp=1,pp=1,dp=1, found \"%.*s\"",
                        (int)(n < 100 ? n : 100), item);
    snprintf(field, sizeof field, "%s%.*s", whole ? "" : section_of(item, n_key), (int)n_key, item);
    if (!may_differ(field))
        return tsr_fail(TSR_EUSAGE,
                        "--against: %s can't differ between layouts that are compared; expected "
                        "fields of parallel, train.micro_batch, train.recompute or device.threads",
                        field);
    if (c->n_extra == TSR_CHECK_MAX_ARGS)
        return tsr_fail(TSR_EUSAGE, "--against: more than %d fields", TSR_CHECK_MAX_ARGS);
    snprintf(c->extra[c->n_extra++], sizeof c->extra[0], "%s%.*s", field, (int)(n - n_key),
             item + n_key);
    return 0;
}

int tsr_check_against(struct tsr_check *c, const char *against) {
    for (const char *p = against;; p++) {
        size_t n = strcspn(p, ",");
        TSR_TRY(add_field(c, p, n));
        p += n;
        if (!*p)
            return 0;
    }
}

// Lines of tessera's own, or all when there are none: mpirun has much to add.
static void pass_on(const struct tsr_buf *out) {
    bool any = false;
    for (int all = 0; all < 2 && !any; all++)
        for (const char *p = out->data; p && *p;) {
            size_t n = strcspn(p, "\n");
            if (all || strncmp(p, "tessera", 7) == 0) {
                fprintf(stderr, "%.*s\n", (int)n, p);
                any = true;
            }
            p += n + (p[n] != 0);
        }
}

int tsr_check_run(struct tsr_check *c, struct tsr_side *s, int *exit_code) {
    const char *argv[2 * TSR_CHECK_MAX_ARGS + 32];
    char count[16], steps[24], self[TSR_PATH_MAX];
    int world = s->plan.plan.mesh.world;
    int n = world > 1 ? tsr_mpirun_words(argv, count, world) : 0;
    struct tsr_child_result r;
    *exit_code = 0;
    TSR_TRY(tsr_own_program(self));
    TSR_TRY(tsr_mkdir_p(s->dir));
    snprintf(steps, sizeof steps, "%lld", (long long)c->steps);
    const char *const head[] = {self, "layout-check", "--rank", s->dir, steps, c->path};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++)
        argv[n++] = head[i];
    for (int i = 0; i < s->n_overrides; i++)
        argv[n++] = s->overrides[i];
    argv[n] = NULL;
    struct tsr_child child = {.argv = argv, .env = tsr_mpirun_env()};
    TSR_TRY(tsr_child_run(&child, &r));
    *exit_code = r.exit_code;
    if (r.exit_code != 0)
        pass_on(&r.out);
    tsr_buf_free(&r.out);
    if (r.exit_code != 0)
        return tsr_fail(TSR_EPEER, "the ranks of %s ended with exit code %d", s->text, r.exit_code);
    return 0;
}
