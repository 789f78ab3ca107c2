#include "launcher/supervise_command.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "launcher/child.h"
#include "launcher/supervise_policy.h"

extern char **environ;

int tsr_strings_add(struct tsr_strings *s, const char *fmt, ...) {
    va_list ap;
    char *text;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    char **items = realloc(s->items, (size_t)(s->n + 2) * sizeof *items);
    if (items)
        s->items = items;
    if (n < 0 || !items) {
        if (n >= 0)
            free(text);
        return tsr_fail(TSR_ENOMEM, "no memory for a command line");
    }
    items[s->n++] = text;
    items[s->n] = NULL;
    return 0;
}

void tsr_strings_free(struct tsr_strings *s) {
    for (int i = 0; i < s->n; i++)
        free(s->items[i]);
    free(s->items);
    *s = (struct tsr_strings){0};
}

bool tsr_command_is_direct(const struct tsr_rank_command *c) {
    return tsr_layout_ranks(&c->layout) == 1 && tsr_hosts_are_here(c->hosts);
}

static int add_words(struct tsr_strings *s, const char *const *words) {
    for (; *words; words++)
        TSR_TRY(tsr_strings_add(s, "%s", *words));
    return 0;
}

static const char *const own[] = {"TESSERA_COORDINATOR", "TESSERA_EPOCH", "TESSERA_RUN"};

static bool is_own(const char *name, size_t n) {
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strlen(own[i]) == n && memcmp(name, own[i], n) == 0)
            return true;
    return false;
}

// Variables that matter to ranks on other hosts too, which don't inherit the environment.
static int add_exports(struct tsr_strings *argv) {
    static const char *const prefixes[] = {"TESSERA_", "NCCL_", "CUDA_", "UCX_",
                                           "LD_LIBRARY_PATH="};
    for (char **e = environ; *e; e++)
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
            size_t n = strcspn(*e, "=");
            if (strncmp(*e, prefixes[i], strlen(prefixes[i])) != 0 || is_own(*e, n))
                continue;
            TSR_TRY(tsr_strings_add(argv, "-x"));
            TSR_TRY(tsr_strings_add(argv, "%.*s", (int)n, *e));
        }
    return 0;
}

static int add_hosts(const struct tsr_rank_command *c, struct tsr_strings *argv) {
    struct tsr_buf list = {0};
    if (c->hosts->n == 0)
        return 0;
    int rc = tsr_hosts_format(c->hosts, c->host_lost, &list);
    if (rc == 0)
        rc = tsr_strings_add(argv, "--host");
    if (rc == 0)
        rc = tsr_strings_add(argv, "%s", list.data ? list.data : "");
    tsr_buf_free(&list);
    return rc;
}

// Ranks wait by polling: without yield_when_idle they starve each other when they share cores, and
// without bind-to none two runs on one machine are bound to the same cores. Spawning threads are
// switched off because a process dies with the thread that started it (PR_SET_PDEATHSIG).
static int add_mpirun(const struct tsr_rank_command *c, struct tsr_strings *argv) {
    static const char *const head[] = {"mpirun",
                                       "--bind-to",
                                       "none",
                                       "--oversubscribe",
                                       "--mca",
                                       "mpi_yield_when_idle",
                                       "1",
                                       "--mca",
                                       "odls_base_num_threads",
                                       "0",
                                       NULL};
    static const char *const folders[] = {"orte_tmpdir_base", "btl_vader_backing_directory",
                                          "osc_sm_backing_directory", NULL};
    TSR_TRY(add_words(argv, head));
    TSR_TRY(tsr_strings_add(argv, "-np"));
    TSR_TRY(tsr_strings_add(argv, "%" PRId64, tsr_layout_ranks(&c->layout)));
    TSR_TRY(add_hosts(c, argv));
    // They hold on every host that ranks run on, and only this one has the folder.
    for (int i = 0; folders[i] && c->scratch && tsr_hosts_are_here(c->hosts); i++)
        TSR_TRY(add_words(argv, (const char *const[]){"--mca", folders[i], c->scratch, NULL}));
    TSR_TRY(add_words(argv, (const char *const[]){"-x", own[0], "-x", own[1], "-x", own[2], NULL}));
    return add_exports(argv);
}

static int add_rank(const struct tsr_rank_command *c, struct tsr_strings *argv) {
    const struct tsr_layout3 *l = &c->layout;
    TSR_TRY(add_words(argv, (const char *const[]){c->program, "train", "--", c->run_file, NULL}));
    for (int i = 0; i < c->n_overrides; i++)
        TSR_TRY(tsr_strings_add(argv, "%s", c->overrides[i]));
    // The last one counts.
    TSR_TRY(tsr_strings_add(argv, "parallel.tp=%" PRId64, l->tp));
    TSR_TRY(tsr_strings_add(argv, "parallel.pp=%" PRId64, l->pp));
    return tsr_strings_add(argv, "parallel.dp=%" PRId64, l->dp);
}

int tsr_command_ranks(const struct tsr_rank_command *c, struct tsr_strings *argv,
                      struct tsr_strings *env) {
    bool direct = tsr_command_is_direct(c);
    TSR_TRY(tsr_strings_add(env, "TESSERA_COORDINATOR=%s", c->coordinator));
    TSR_TRY(tsr_strings_add(env, "TESSERA_EPOCH=%" PRIu64, c->epoch));
    TSR_TRY(tsr_strings_add(env, "TESSERA_RUN=%s", c->token));
    for (const char *const *v = tsr_mpirun_env(); !direct && *v; v++)
        TSR_TRY(tsr_strings_add(env, "%s", *v));
    // On this host only: daemons elsewhere don't inherit it.
    if (c->scratch && !tsr_hosts_are_here(c->hosts))
        TSR_TRY(tsr_strings_add(env, "TMPDIR=%s", c->scratch));
    if (!direct)
        TSR_TRY(add_mpirun(c, argv));
    return add_rank(c, argv);
}
