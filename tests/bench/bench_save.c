// Checkpoints: how long training stops for one beside a plain copy of the same bytes, and how fast
// it is written and loaded beside plain sequential files on the same disk. What is compared takes
// turns, and the median is taken of the shares of each turn: the disk and the machine change.
//   mpirun --bind-to none --mca mpi_yield_when_idle 1 -np 2 bench_save DIR [PRESET [TP PP DP]]
// DIR is a folder on the disk; PRESET a model of configs/models (smollm2-135m). The ranks' layout
// is dp = all ranks unless given. Nothing else should use the machine.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "core/checkpoint_publish.h"
#include "core/presets.h"
#include "dist/comm_mpi.h"
#include "dist/leaves.h"
#include "dist/snapshot.h"
#include "dist/store.h"
#include "tests/bench/plain_file.h"
#include "tests/unit/state_support.h"

enum { TURNS = 7, MOST = 4 };

struct bench {
    struct tsr_comm c;
    struct tsr_ctx ctx;
    struct tsr_progress progress;
    struct tsr_model model;
    struct tsr_net net;
    struct tsr_snapshot *snapshot;
    char run_dir[TSR_PATH_MAX], plain[TSR_PATH_MAX];
    uint32_t attempt;
    uint64_t n_bytes; // of a checkpoint
    char *copy;       // of the local state
    size_t n_local;
};

static bool first(const struct bench *b) {
    return b->c.rank == 0;
}

static void must(struct bench *b, int rc) {
    if (rc < 0)
        tsr_comm_abort(&b->c, tsr_exit_code(rc));
}

static void barrier(struct bench *b) {
    must(b, b->c.ops->barrier(&b->ctx, &b->c, &b->c.world_group, "bench", 600));
}

// The slowest rank's seconds, on all ranks.
static double slowest(struct bench *b, double seconds) {
    struct tsr_leaves l = {0};
    double *all, most = 0.0;
    must(b, tsr_leaves_push(&l, b->c.rank, seconds));
    must(b, tsr_leaves_gather(&b->ctx, &b->c, &l, b->c.world, &all));
    for (int r = 0; r < b->c.world; r++)
        most = all[r] > most ? all[r] : most;
    free(all);
    return most;
}

// ---- stall

static void take(struct bench *b) {
    must(b, tsr_snapshot_take(b->snapshot));
}

static void copy_plainly(struct bench *b) {
    memcpy(b->copy, b->copy + b->n_local, b->n_local);
}

static double median(const double *values) {
    double t[TURNS];
    memcpy(t, values, sizeof t);
    for (int i = 1; i < TURNS; i++)
        for (int k = i; k > 0 && t[k] < t[k - 1]; k--) {
            double swap = t[k];
            t[k] = t[k - 1];
            t[k - 1] = swap;
        }
    return t[TURNS / 2];
}

// All ranks at once, the slowest counts.
static double measure(struct bench *b, void (*fn)(struct bench *)) {
    barrier(b);
    double begun = tsr_now();
    fn(b);
    return slowest(b, tsr_now() - begun);
}

static void compare_stall(struct bench *b) {
    double stall[TURNS], copy[TURNS], ratio[TURNS];
    take(b);
    copy_plainly(b);
    for (int i = 0; i < TURNS; i++) {
        stall[i] = measure(b, take);
        copy[i] = measure(b, copy_plainly);
        ratio[i] = stall[i] / copy[i];
    }
    if (first(b))
        printf("stall %.1f ms, memcpy of the %.2f GB of a rank %.1f ms: %.2f x\n",
               median(stall) * 1e3, (double)b->n_local * 1e-9, median(copy) * 1e3, median(ratio));
}

// ---- a plain file, by rank 0 alone

static double write_plain(struct bench *b, int flags) {
    double seconds = 0.0;
    if (first(b))
        must(b, plain_write(b->plain, b->n_bytes, flags, &seconds));
    return slowest(b, seconds);
}

// The very files that are loaded, one after the other: other places of a disk have other speeds.
static double read_plain(struct bench *b, int flags) {
    double seconds = 0.0;
    must(b, first(b) ? plain_read_all(b->run_dir, flags, &seconds) : 0);
    return slowest(b, seconds);
}

// ---- a save, with the coordinator's part done over MPI

struct ranges {
    struct tsr_digest *digests;
    char *have;
    uint64_t n;
};

static void take_vote(struct ranges *r, struct tsr_save_vote *v) {
    for (int i = 0; i < v->n_ranges; i++) {
        memcpy(r->digests + v->ranges[i].first, v->ranges[i].digests,
               (size_t)v->ranges[i].n * sizeof *r->digests);
        memset(r->have + v->ranges[i].first, 1, (size_t)v->ranges[i].n);
    }
    tsr_save_vote_free(v);
}

// All ranks' ranges come together on all ranks.
static void exchange(struct bench *b, struct ranges *r) {
    const size_t one = r->n * (sizeof *r->digests + 1), world = (size_t)b->c.world;
    char *all = malloc(world * one);
    size_t *n_bytes = malloc(world * sizeof *n_bytes);
    if (!all || !n_bytes)
        must(b, tsr_fail(TSR_ENOMEM, "no memory"));
    for (size_t i = 0; i < world; i++)
        n_bytes[i] = one;
    char *mine = all + (size_t)b->c.rank * one;
    memcpy(mine, r->have, r->n);
    memcpy(mine + r->n, r->digests, r->n * sizeof *r->digests);
    must(b, b->c.ops->all_gather(&b->ctx, &b->c, &b->c.world_group, all, mine, n_bytes, NULL));
    for (size_t i = 0; i < world; i++)
        for (uint64_t k = 0; k < r->n; k++)
            if (all[i * one + k]) {
                r->have[k] = 1;
                memcpy(&r->digests[k], all + i * one + r->n + k * sizeof *r->digests,
                       sizeof *r->digests);
            }
    free(all);
    free(n_bytes);
}

// Ranges that nobody wrote alone, in turns.
static uint64_t read_back(struct bench *b, struct tsr_checkpoint *c, struct ranges *r) {
    uint64_t n_back = 0;
    for (uint64_t k = 0; k < r->n; k++) {
        struct tsr_save_vote v;
        struct tsr_span span = {k, 1};
        if (r->have[k] || n_back++ % (uint64_t)b->c.world != (uint64_t)b->c.rank)
            continue;
        must(b, tsr_checkpoint_digest(c, &span, 1, &v));
        take_vote(r, &v);
    }
    return n_back;
}

static void publish(struct bench *b, const struct tsr_save_plan *plan, const struct ranges *r) {
    const struct tsr_publish p = {.run_dir = b->run_dir,
                                  .step = 1,
                                  .temporary = plan->temporary,
                                  .range_bytes = plan->range_bytes,
                                  .files = plan->files,
                                  .n_files = plan->n_files,
                                  .digests = r->digests};
    must(b, tsr_publish_write_manifest(&p));
    must(b, tsr_publish_sync_manifest(&p));
    must(b, tsr_publish_sync_dirs(&p));
    must(b, tsr_publish_rename(&p));
    must(b, tsr_publish_sync_parent(&p));
}

static void open_ranges(struct bench *b, const struct tsr_save_plan *plan, struct ranges *r) {
    const struct tsr_publish p = {.temporary = plan->temporary,
                                  .range_bytes = plan->range_bytes,
                                  .files = plan->files,
                                  .n_files = plan->n_files};
    must(b, tsr_publish_n_ranges(&p, &r->n));
    r->digests = calloc(r->n, sizeof *r->digests);
    r->have = calloc(r->n, 1);
    b->n_bytes = 0;
    for (int i = 0; i < plan->n_files; i++)
        b->n_bytes += plan->files[i].size;
    if (!r->digests || !r->have)
        must(b, tsr_fail(TSR_ENOMEM, "no memory"));
}

static double save(struct bench *b, int unused) {
    (void)unused;
    struct tsr_state state = {.step = 1,
                              .virtual_shards = b->net.mesh.V,
                              .virtual_replicas = b->net.mesh.W,
                              .run_yaml = (char[]){""}};
    struct tsr_checkpoint_opt opt = {.run_dir = b->run_dir,
                                     .model = &b->model,
                                     .table = &b->net.tensors,
                                     .dtype = TSR_DT_F32,
                                     .step = 1,
                                     .epoch = 1,
                                     .attempt = ++b->attempt};
    struct tsr_checkpoint *c;
    struct tsr_save_plan plan;
    struct tsr_save_vote v;
    struct ranges r;
    if (first(b)) { // replacing one would also be timed
        must(b, tsr_remove_tree(b->run_dir));
        sync();
    }
    take(b);
    barrier(b);
    double begun = tsr_now();
    must(b, tsr_checkpoint_open(&c, &opt));
    if (first(b))
        must(b, tsr_checkpoint_begin(c, &state, NULL, NULL));
    barrier(b);
    must(b, tsr_checkpoint_plan(c, &plan));
    open_ranges(b, &plan, &r);
    must(b, tsr_snapshot_write(b->snapshot, c));
    double copied = tsr_now();
    must(b, tsr_checkpoint_flush(c, &v));
    take_vote(&r, &v);
    double wrote = tsr_now();
    exchange(b, &r);
    uint64_t n_back = read_back(b, c, &r);
    exchange(b, &r);
    double digested = tsr_now();
    if (first(b))
        publish(b, &plan, &r);
    barrier(b);
    double seconds = tsr_now() - begun;
    if (first(b))
        printf("  save: %.2f GB/s (%.2f s: writing %.2f, syncing %.2f, digests of %llu of %llu "
               "ranges %.2f)\n",
               (double)b->n_bytes / seconds * 1e-9, seconds, copied - begun, wrote - copied,
               (unsigned long long)n_back, (unsigned long long)r.n, digested - wrote);
    free(r.digests);
    free(r.have);
    tsr_save_plan_free(&plan);
    tsr_checkpoint_close(c);
    return slowest(b, seconds);
}

// ---- load

// What is loaded is what was saved: nothing of it is in memory before.
static double load(struct bench *b, int verify) {
    char dir[TSR_PATH_MAX];
    const uint64_t before = state_hash(&b->net);
    must(b, tsr_checkpoint_path(dir, b->run_dir, 1));
    state_spoil(&b->net);
    if (first(b))
        must(b, plain_drop_cache(dir));
    barrier(b);
    double begun = tsr_now();
    if (verify)
        must(b, tsr_store_verify(&b->net, dir));
    must(b, tsr_store_load_checkpoint(&b->net, dir, verify));
    double seconds = slowest(b, tsr_now() - begun);
    if (state_hash(&b->net) != before)
        must(b, tsr_fail(TSR_EDATA, "what was loaded isn't what was saved"));
    return seconds;
}

// ---- main

static void open_bench(struct bench *b, int argc, char **argv) {
    const char *preset = argc > 2 ? argv[2] : "smollm2-135m";
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1, .seed = 1};
    struct tsr_mesh mesh;
    int tp = argc > 5 ? atoi(argv[3]) : 1, pp = argc > 5 ? atoi(argv[4]) : 1;
    int dp = argc > 5 ? atoi(argv[5]) : b->c.world;
    const char *json = tsr_preset_json(preset);
    if (tp * pp * dp != b->c.world || !json)
        must(b, tsr_fail(TSR_EUSAGE, json ? "TP x PP x DP are not the ranks" : "no such preset"));
    must(b, tsr_model_parse(&b->model, json, preset));
    must(b, tsr_cpu_open(&b->ctx, NULL, 1));
    tsr_mesh_place(&mesh, tp, pp, dp, b->c.rank);
    mesh.V = mesh.W = 8;
    must(b, tsr_net_open(&b->net, &b->ctx, &b->c, &mesh, &b->model, &opt, 64));
    must(b, tsr_net_init(&b->net));
    state_fill(&b->net);
    must(b, tsr_snapshot_open(&b->snapshot, &b->net));
    b->n_local = tsr_snapshot_bytes(&b->net);
    b->copy = malloc(2 * b->n_local);
    if (!b->copy)
        must(b, tsr_fail(TSR_ENOMEM, "no memory for a copy"));
    memset(b->copy, 1, 2 * b->n_local);
    must(b, tsr_path_join(b->run_dir, argv[1], "bench-save"));
    must(b, tsr_path_join(b->plain, argv[1], "bench-save-plain"));
    if (first(b))
        printf("%s, tp %d pp %d dp %d\n", preset, tp, pp, dp);
}

struct contender {
    const char *what;
    double (*fn)(struct bench *, int flags);
    int flags;
};

// Seconds of processor that all ranks have used so far.
static double processor(struct bench *b) {
    struct rusage u;
    struct tsr_leaves l = {0};
    double *all, sum = 0.0;
    getrusage(RUSAGE_SELF, &u);
    must(b, tsr_leaves_push(&l, b->c.rank,
                            (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                                (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6));
    must(b, tsr_leaves_gather(&b->ctx, &b->c, &l, b->c.world, &all));
    for (int r = 0; r < b->c.world; r++)
        sum += all[r];
    free(all);
    return sum;
}

// In turns. The first two of `c` are plain: the others are compared with the faster of them in the
// same turn. A page cache that takes twice as long won't become the faster one: once is enough.
static void compare(struct bench *b, const struct contender *c, int n) {
    double t[MOST][TURNS], share[MOST][TURNS], used[MOST] = {0};
    for (int i = 0; i < TURNS; i++) {
        for (int k = 0; k < n; k++) {
            if (k == 0 && i > 0 && t[0][0] > 2 * t[1][0]) {
                t[0][i] = t[0][0];
                continue;
            }
            double before = processor(b);
            t[k][i] = c[k].fn(b, c[k].flags);
            used[k] = processor(b) - before; // of the last turn
        }
        for (int k = 0; k < n; k++)
            share[k][i] = (t[0][i] < t[1][i] ? t[0][i] : t[1][i]) / t[k][i];
    }
    for (int k = 0; k < n && first(b); k++) {
        printf("%-24s %.2f GB/s, %.2f s of processors", c[k].what,
               (double)b->n_bytes / median(t[k]) * 1e-9, used[k]);
        if (k >= 2) {
            printf(", %.2f of plain (", median(share[k]));
            for (int i = 0; i < TURNS; i++)
                printf("%s%.2f", i ? " " : "", share[k][i]);
            printf(")");
        }
        printf("\n");
    }
}

static void run(struct bench *b) {
    static const struct contender writers[] = {{"plain write, page cache", write_plain, 0},
                                               {"plain write, O_DIRECT", write_plain, O_DIRECT},
                                               {"save", save, 0}};
    static const struct contender readers[] = {{"plain read, page cache", read_plain, 0},
                                               {"plain read, O_DIRECT", read_plain, O_DIRECT},
                                               {"load", load, false},
                                               {"verify and load", load, true}};
    compare_stall(b);
    free(b->copy);
    save(b, 0); // how large a checkpoint is
    compare(b, writers, 3);
    compare(b, readers, 4);
}

int main(int argc, char **argv) {
    static struct bench b;
    int rc = tsr_comm_open_mpi(&b.c, &argc, &argv, &b.progress);
    if (rc < 0 || argc < 2) {
        fprintf(stderr, "%s\n", rc < 0 ? tsr_error_text() : "expected a folder on the disk");
        return 2;
    }
    open_bench(&b, argc, argv);
    run(&b);
    barrier(&b);
    if (first(&b)) {
        tsr_remove_tree(b.run_dir);
        unlink(b.plain);
    }
    tsr_snapshot_close(b.snapshot);
    tsr_net_close(&b.net);
    b.ctx.ops->close(&b.ctx);
    tsr_model_free(&b.model);
    tsr_comm_close(&b.c);
    return 0;
}
