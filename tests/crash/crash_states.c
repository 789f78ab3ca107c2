// Every state that a crash could leave a recorded run in, and what recovery makes of it.
//
//   crash_states RECORD RUN_DIR SCRATCH [--least N] [--forget]
//
// A crash after any number of operations leaves all that were followed by a sync of their file or
// folder, and of the others all but a subset: here each subset of up to three. Recovery must give
// the checkpoint that the run last vouched for, or one newer, whole and verified. A run vouches for
// a checkpoint when it has synced the folder of checkpoints, makes the next temporary, or ends.
//
// Distinct states are verified by the project's own code on real files; states that differ only in
// unfinished temporaries, which recovery must not open, share the answer, and a sample of those is
// verified too. --forget: instead, each object's syncs are taken out of the record in turn; every
// time a state must be found that recovery does not survive, or this test could not fail.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "tests/crash/disk.h"

struct search {
    struct crash_trace trace;
    struct crash_model model;
    struct crash_disk disk;
    struct crash_map answers, sampled; // by tree hash, without and with temporaries
    struct crash_found *found;
    int n_found;
    int *head;    // (n_ops + 1) answer when nothing is dropped
    int *vouched; // (n_ops + 1) the first k whose head recovery may still give
    int most_dropped;
    int64_t n_states, n_on_disk, n_fallbacks, n_bad, sample_every;
    bool quiet;
};

static bool same(const struct crash_found *a, const struct crash_found *b) {
    return a->step == b->step && a->manifest == b->manifest;
}

static int answer(struct search *x, const struct crash_state *s, bool anew) {
    int *id = crash_map_at(&x->answers, crash_tree_hash(&x->model, s, false));
    if (*id >= 0 && !anew)
        return *id;
    struct crash_found f = crash_disk_recover(&x->disk, s);
    x->n_on_disk++;
    if (*id >= 0) {
        TSR_ASSERT(same(&f, &x->found[*id]) && f.n_refused == x->found[*id].n_refused);
        return *id;
    }
    x->found = crash_more(x->found, (size_t)(x->n_found + 1) * sizeof *x->found);
    x->found[x->n_found] = f;
    return *id = x->n_found++;
}

static void report_bad(struct search *x, const struct crash_state *s, const struct crash_found *f) {
    const struct crash_op *ops = x->trace.ops;
    x->n_bad++;
    if (x->quiet || x->n_bad > 5)
        return;
    printf("after operation %d (%s): expected step %" PRId64 " to %" PRId64 ", found %" PRId64
           " (%d refused); not on the disk:\n",
           s->k, s->k ? ops[s->k - 1].path : "", x->found[x->head[x->vouched[s->k]]].step,
           x->found[x->head[s->k]].step, f->step, f->n_refused);
    for (int i = 0; i < s->n_dropped; i++)
        printf("    operation %d, kind %d, %s\n", s->dropped[i] + 1, ops[s->dropped[i]].kind,
               ops[s->dropped[i]].path);
}

static void check(struct search *x, const struct crash_state *s) {
    bool sampled = x->sample_every && x->n_states % x->sample_every == 0;
    if (sampled) {
        int *seen = crash_map_at(&x->sampled, crash_tree_hash(&x->model, s, true));
        sampled = *seen < 0;
        *seen = 1;
    }
    int id = answer(x, s, sampled); // which may move the answers
    const struct crash_found f = x->found[id];
    x->n_states++;
    x->n_fallbacks += f.n_refused > 0;
    for (int k = x->vouched[s->k]; k <= s->k; k++)
        if (same(&f, &x->found[x->head[k]]))
            return;
    report_bad(x, s, &f);
}

// All subsets of `open` with at most x->most_dropped members, beside those in s already.
static void check_subsets(struct search *x, struct crash_state *s, const int *open, int n) {
    check(x, s);
    if (s->n_dropped == x->most_dropped)
        return;
    for (int i = 0; i < n; i++) {
        s->dropped[s->n_dropped++] = open[i];
        check_subsets(x, s, open + i + 1, n - i - 1);
        s->n_dropped--;
    }
}

static int list_open(const struct search *x, int k, int *open) {
    int n = 0;
    for (int i = 0; i < k; i++)
        if (x->trace.ops[i].covered_at >= k)
            open[n++] = i;
    return n;
}

static bool is_checkpoints_entry(const struct search *x, const struct crash_op *op) {
    return op->n_changes == 1 && op->changes[0].target == x->trace.checkpoints;
}

// With the folder of checkpoints synced, and that folder's own name.
static bool vouches(const struct search *x, int k, bool *named) {
    const struct crash_trace *t = &x->trace;
    const struct crash_op *op = &t->ops[k - 1];
    if (k == t->n_ops)
        return true;
    if (op->kind == CRASH_SYNC && op->obj == 0)
        *named = *named || t->checkpoints >= 0;
    if (op->kind == CRASH_SYNC && op->obj == t->checkpoints)
        return *named;
    return op->kind == CRASH_MKDIR && op->changes[0].dir == t->checkpoints;
}

static void find_heads(struct search *x) {
    const int n = x->trace.n_ops;
    bool named = false;
    x->head = crash_more(NULL, (size_t)(n + 1) * sizeof *x->head);
    x->vouched = crash_more(NULL, (size_t)(n + 1) * sizeof *x->vouched);
    for (int k = 0; k <= n; k++) {
        struct crash_state s = {.k = k};
        bool entry = k > 0 && is_checkpoints_entry(x, &x->trace.ops[k - 1]);
        named = named && !entry;
        x->head[k] = answer(x, &s, false);
        x->vouched[k] = k == 0 || vouches(x, k, &named) ? k : x->vouched[k - 1];
    }
}

static void check_all(struct search *x) {
    const int n = x->trace.n_ops;
    int *open = crash_more(NULL, (size_t)n * sizeof *open);
    for (int k = 0; k <= n && !(x->quiet && x->n_bad > 0); k++) {
        struct crash_state s = {.k = k};
        check_subsets(x, &s, open, list_open(x, k, open));
    }
    free(open);
}

// How many states check_all will visit.
static int64_t count_states(const struct search *x) {
    int64_t total = 0;
    for (int k = 0; k <= x->trace.n_ops; k++) {
        int64_t u = 0;
        for (int i = 0; i < k; i++)
            u += x->trace.ops[i].covered_at >= k;
        total += 1 + u + u * (u - 1) / 2 + u * (u - 1) * (u - 2) / 6;
    }
    return total;
}

// Each object of a checkpoint that is synced at all must be synced.
static int forget_each(struct search *x) {
    int n_tried = 0, n_missed = 0;
    x->quiet = true;
    x->most_dropped = 1;
    for (int obj = 0; obj < x->trace.n_objs; obj++) {
        const char *path = NULL;
        for (int i = 0; i < x->trace.n_ops; i++)
            if (x->trace.ops[i].kind == CRASH_SYNC && x->trace.ops[i].obj == obj)
                path = x->trace.ops[i].path;
        if (!path)
            continue;
        crash_trace_cover(&x->trace, obj);
        x->n_bad = 0;
        check_all(x);
        n_tried++;
        n_missed += x->n_bad == 0;
        if (x->n_bad == 0)
            printf("without the syncs of RUN_DIR%s: every state is survived\n", path);
    }
    printf("syncs of %d objects forgotten in turn: %d noticed\n", n_tried, n_tried - n_missed);
    return n_tried >= 10 && n_missed == 0 ? 0 : 1;
}

static int judge(struct search *x, int64_t least, double began) {
    const int n = x->trace.n_ops;
    printf("%d operations, %" PRId64 " states, %d answers; %" PRId64 " verified on files; %" PRId64
           " fall back; last step %" PRId64 "; %" PRId64 " wrong; %.1f s\n",
           n, x->n_states, x->n_found, x->n_on_disk, x->n_fallbacks, x->found[x->head[n]].step,
           x->n_bad, tsr_now() - began);
    if (x->n_on_disk < least)
        printf("expected at least %" PRId64 " states on files\n", least);
    return x->n_bad == 0 && x->n_on_disk >= least && x->found[x->head[n]].step >= 0 ? 0 : 1;
}

static void open_search(struct search *x, const char *record, const char *run_dir,
                        const char *scratch) {
    char store[TSR_PATH_MAX], disk[TSR_PATH_MAX];
    TSR_ASSERT(tsr_path_join(store, scratch, "contents") == 0);
    TSR_ASSERT(tsr_path_join(disk, scratch, "run") == 0);
    crash_trace_read(&x->trace, record, run_dir);
    crash_model_open(&x->model, &x->trace, store);
    crash_disk_open(&x->disk, &x->model, disk);
    x->most_dropped = CRASH_MAX_DROPPED;
    find_heads(x);
}

static void close_search(struct search *x) {
    crash_disk_close(&x->disk);
    crash_model_close(&x->model);
    crash_map_free(&x->answers);
    crash_map_free(&x->sampled);
    free(x->found);
    free(x->head);
    free(x->vouched);
    crash_trace_free(&x->trace);
}

int main(int argc, char **argv) {
    struct search x = {0};
    int64_t least = 1;
    bool forget = false;
    double began = tsr_now();
    if (argc < 4) {
        fprintf(stderr, "usage: crash_states RECORD RUN_DIR SCRATCH [--least N] [--forget]\n");
        return 2;
    }
    for (int i = 4; i < argc; i++) {
        if (strcmp(argv[i], "--least") == 0 && i + 1 < argc)
            least = strtoll(argv[++i], NULL, 10);
        forget = forget || strcmp(argv[i], "--forget") == 0;
    }
    open_search(&x, argv[1], argv[2], argv[3]);
    int rc;
    if (forget) {
        rc = forget_each(&x);
    } else {
        x.sample_every = count_states(&x) / (8 * least);
        x.sample_every = x.sample_every < 1 ? 1 : x.sample_every;
        check_all(&x);
        rc = judge(&x, least, began);
    }
    close_search(&x);
    return rc;
}
