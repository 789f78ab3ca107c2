// A run directory with an epoch, coordinators on threads, and ranks with made-up checkpoints.
#ifndef TSR_TESTS_CONTROL_SUPPORT_H
#define TSR_TESTS_CONTROL_SUPPORT_H

#include "files_support.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>
#include <xxhash.h>
#include "core/clock.h"
#include "core/log.h"
#include "launcher/agent.h"
#include "launcher/coordinator/loop.h"
#include "launcher/status_view.h"

#define GONE_S 0.2 // beyond lost_s until agents of these tests give up a missing coordinator

static char run_dir[TSR_PATH_MAX];
static uint64_t run_epoch;
static struct {
    double lost_s, grace_s;
    const char *run_name;
    int metrics_port;
} limits; // of the coordinators that are started; a test may change them

static inline int control_setup(void **state) {
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    if (!getenv("TESSERA_LOG"))
        tsr_log_level(TSR_LOG_ERROR + 1); // refusals are what these tests are about
    make_temp_dir(run_dir);
    limits.lost_s = limits.grace_s = 30; // a loaded machine is no failure
    limits.run_name = "test";
    limits.metrics_port = TSR_METRICS_NONE;
    return tsr_epoch_take(run_dir, &run_epoch);
}

static inline int control_teardown(void **state) {
    (void)state;
    return tsr_remove_tree(run_dir);
}

static inline void nap(double s) {
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

static const double PATIENCE_S = 60;

// Waits for a condition; how long a loaded machine takes for it doesn't matter.
#define WAIT_FOR(condition)                                                                        \
    do {                                                                                           \
        for (double end_ = tsr_now() + PATIENCE_S; !(condition); nap(0.005))                       \
            if (tsr_now() > end_)                                                                  \
                fail_msg("waited in vain for %s", #condition);                                     \
    } while (0)

// ---- a raw connection

static inline int connect_to(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = 60};
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

// Reads until the other end closes: true; false when it doesn't within a minute.
static inline bool is_closed_by_peer(int fd) {
    char bytes[4096];
    ssize_t n;
    do
        n = recv(fd, bytes, sizeof bytes, 0);
    while (n > 0);
    return n == 0 || errno == ECONNRESET;
}

// ---- the coordinator

struct coordinator {
    struct tsr_coordinator_thread *thread;
    struct tsr_address address;
    char where[TSR_HOST_MAX + 16];
    atomic_int failed; // 1 + the rank
};

static inline void note_failed(void *arg, const Tessera__Control__Failed *f) {
    struct coordinator *c = arg;
    atomic_store(&c->failed, 1 + (int)f->rank);
}

static inline void coordinator_start(struct coordinator *c, int port) {
    const struct tsr_coordinator_opt opt = {.core = {.run_name = limits.run_name,
                                                     .run_dir = run_dir,
                                                     .epoch = run_epoch,
                                                     .heartbeat_s = 0.05,
                                                     .lost_s = limits.lost_s,
                                                     .grace_s = limits.grace_s},
                                            .port = port,
                                            .metrics_port = limits.metrics_port,
                                            .failed = note_failed,
                                            .arg = c};
    *c = (struct coordinator){0};
    expect_ok(tsr_coordinator_thread_open(&c->thread, &opt, &c->address));
    tsr_address_text(c->where, c->address.host, c->address.port);
}

// The status; the caller frees it.
static inline Tessera__Control__Status *coordinator_status(const struct coordinator *c) {
    Tessera__Control__Status *s;
    uint8_t secret[TSR_SECRET];
    expect_ok(tsr_run_key(run_dir, secret));
    expect_ok(tsr_status_ask(&c->address, secret, &s));
    return s;
}

static inline void coordinator_stop(struct coordinator *c) {
    tsr_coordinator_thread_close(c->thread);
    c->thread = NULL;
}

// ---- ranks; each owns one row of one tensor, so WORLD x 3 elements make a checkpoint

enum { WORLD = 3, COLS = 1, RANGE = 1 << 12 };

enum stage { IN_BEGIN, IN_WRITE, IN_DIGEST, N_STAGES };

struct rank {
    int number;
    struct tsr_agent *agent;
    struct tsr_progress progress;
    int64_t step;
    uint32_t attempt;
    atomic_int in[N_STAGES];   // how often each was entered
    atomic_int hold[N_STAGES]; // stays in it while set
    int fail[N_STAGES];        // code to fail with
    bool digest_all;           // leave all digests to be dealt out
    atomic_int n_ended;
    struct tsr_save_result ended;
    atomic_int exit_code; // of `end`; -1: it wasn't called
};

static inline int pass_stage(struct rank *r, enum stage s) {
    atomic_fetch_add(&r->in[s], 1);
    while (atomic_load(&r->hold[s]))
        nap(0.002);
    return r->fail[s]
               ? tsr_fail((enum tsr_code)r->fail[s], "rank %d can't in stage %d", r->number, (int)s)
               : 0;
}

static inline void temporary_of(const struct rank *r, char name[static 128],
                                char path[static TSR_PATH_MAX]) {
    snprintf(name, 128, ".tmp-step-%08d-e%08d-a%d", (int)r->step, (int)run_epoch, (int)r->attempt);
    expect_ok(tsr_path_join(path, run_dir, "checkpoints"));
    expect_ok(tsr_path_join(path, path, name));
}

// model.bin has one range a rank, and half a range at the end that nobody writes alone.
enum { MODEL_BYTES = WORLD * RANGE + RANGE / 2, CONFIG_BYTES = 2 };

static inline int fake_begin(void *arg, struct tsr_save_plan *plan) {
    struct rank *r = arg;
    char path[TSR_PATH_MAX], file[TSR_PATH_MAX];
    TSR_TRY(pass_stage(r, IN_BEGIN));
    temporary_of(r, plan->temporary, path);
    TSR_TRY(tsr_path_join(file, path, "optimizer"));
    TSR_TRY(tsr_mkdir_p(file));
    TSR_TRY(tsr_path_join(file, path, "config.json"));
    TSR_TRY(tsr_write_file_durable(file, "{}", CONFIG_BYTES));
    TSR_TRY(tsr_path_join(file, path, "model.bin"));
    TSR_TRY(tsr_write_file_durable(file, "", 0));
    if (truncate(file, MODEL_BYTES) < 0)
        return tsr_fail_errno(errno, "cannot make", file);
    plan->range_bytes = RANGE;
    plan->elements = 3 * WORLD * COLS;
    plan->n_files = 2;
    plan->files = calloc(2, sizeof *plan->files);
    plan->files[0] = (struct tsr_planned_file){strdup("config.json"), CONFIG_BYTES};
    plan->files[1] = (struct tsr_planned_file){strdup("model.bin"), MODEL_BYTES};
    return 0;
}

static inline void range_bytes(const struct rank *r, int rank, char out[static RANGE]) {
    memset(out, 'a' + rank + (int)r->step % 8, RANGE);
}

static inline struct tsr_digest digest_of(const void *p, size_t n) {
    struct tsr_digest d;
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(p, n));
    memcpy(d.b, c.digest, sizeof d.b);
    return d;
}

static inline void one_range(struct tsr_save_vote *v, uint64_t first, int n) {
    v->ranges = calloc(1, sizeof *v->ranges);
    v->n_ranges = 1;
    v->ranges[0].first = first;
    v->ranges[0].digests = calloc((size_t)n, sizeof *v->ranges[0].digests);
    v->ranges[0].n = n;
}

static inline int fake_write(void *arg, struct tsr_save_vote *vote) {
    struct rank *r = arg;
    char name[128], path[TSR_PATH_MAX], bytes[RANGE];
    TSR_TRY(pass_stage(r, IN_WRITE));
    temporary_of(r, name, path);
    TSR_TRY(tsr_path_join(path, path, "model.bin"));
    range_bytes(r, r->number, bytes);
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc = tsr_pwrite_all(fd, bytes, RANGE, (uint64_t)r->number * RANGE, path);
    if (rc == 0 && fsync(fd) < 0)
        rc = tsr_fail_errno(errno, "cannot sync", path);
    close(fd);
    vote->elements = 3 * COLS;
    if (r->digest_all)
        return rc;
    one_range(vote, 1 + (uint64_t)r->number, 1); // range 0 is config.json's
    vote->ranges[0].digests[0] = digest_of(bytes, RANGE);
    return rc;
}

static inline int fake_digest(void *arg, const struct tsr_span *spans, int n,
                              struct tsr_save_vote *out) {
    struct rank *r = arg;
    char name[128], dir[TSR_PATH_MAX], path[TSR_PATH_MAX], bytes[RANGE];
    TSR_TRY(pass_stage(r, IN_DIGEST));
    temporary_of(r, name, dir);
    out->ranges = calloc((size_t)n, sizeof *out->ranges);
    for (int i = 0; i < n; i++) {
        struct tsr_range_digests *g = &out->ranges[out->n_ranges++];
        g->first = spans[i].first;
        g->n = (int)spans[i].count;
        g->digests = calloc((size_t)g->n, sizeof *g->digests);
        for (int k = 0; k < g->n; k++) {
            uint64_t range = g->first + (uint64_t)k;
            TSR_TRY(tsr_path_join(path, dir, range == 0 ? "config.json" : "model.bin"));
            size_t size = range == 0 ? CONFIG_BYTES : range <= WORLD ? RANGE : RANGE / 2;
            int fd = open(path, O_RDONLY);
            if (fd < 0)
                return tsr_fail_errno(errno, "cannot open", path);
            int rc = tsr_pread_all(fd, bytes, size, range == 0 ? 0 : (range - 1) * RANGE, path);
            close(fd);
            TSR_TRY(rc);
            g->digests[k] = digest_of(bytes, size);
        }
    }
    return 0;
}

static inline void fake_ended(void *arg, const struct tsr_save_result *result) {
    struct rank *r = arg;
    r->ended = *result;
    atomic_fetch_add(&r->n_ended, 1);
}

static inline void note_end(void *arg, int exit_code, const char *reason) {
    struct rank *r = arg;
    (void)reason;
    atomic_store(&r->exit_code, exit_code);
}

static inline int rank_open(struct rank *r, int number, const char *where, uint64_t epoch,
                            double open_s) {
    const struct tsr_agent_opt opt = {.rank = number,
                                      .world = WORLD,
                                      .tp = 1,
                                      .pp = 1,
                                      .dp = WORLD,
                                      .host = "here",
                                      .run_dir = run_dir,
                                      .address = where,
                                      .epoch = epoch,
                                      .steps = 100,
                                      .progress = &r->progress,
                                      .open_s = open_s,
                                      .gone_s = GONE_S,
                                      .end = note_end,
                                      .arg = r};
    *r = (struct rank){.number = number};
    atomic_store(&r->exit_code, -1);
    return tsr_agent_open(&r->agent, &opt);
}

static inline void publish_map(struct rank *r) {
    Tessera__Checkpoint__Region region = TESSERA__CHECKPOINT__REGION__INIT, *regions = &region;
    Tessera__Checkpoint__TensorShards t = TESSERA__CHECKPOINT__TENSOR_SHARDS__INIT, *tensors = &t;
    Tessera__Checkpoint__ShardMap map = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
    region.r0 = (uint64_t)r->number;
    region.r1 = region.r0 + 1;
    region.c1 = COLS;
    t.name = (char *)"w";
    t.rows = WORLD;
    t.cols = COLS;
    t.n_regions = 1;
    t.regions = &regions;
    map.n_tensors = 1;
    map.tensors = &tensors;
    expect_ok(tsr_agent_shard_map(r->agent, &map));
}

static inline void ranks_open(struct rank ranks[static WORLD], const struct coordinator *c) {
    for (int i = 0; i < WORLD; i++) {
        expect_ok(rank_open(&ranks[i], i, c->where, run_epoch, 60));
        publish_map(&ranks[i]);
    }
}

static inline void ranks_close(struct rank ranks[static WORLD]) {
    for (int i = 0; i < WORLD; i++)
        tsr_agent_close(ranks[i].agent, 0);
}

static inline void ranks_save(struct rank ranks[static WORLD], int64_t step, uint32_t attempt) {
    for (int i = 0; i < WORLD; i++) {
        struct rank *r = &ranks[i];
        const struct tsr_save_ops ops = {.arg = r,
                                         .begin = fake_begin,
                                         .write = fake_write,
                                         .digest = fake_digest,
                                         .ended = fake_ended};
        r->step = step;
        r->attempt = attempt;
        expect_ok(tsr_agent_save(r->agent, step, attempt, &ops));
    }
}

// Every rank's save ended with `code`, and in its callback as well.
static inline void ranks_expect(struct rank ranks[static WORLD], int64_t step, int code) {
    for (int i = 0; i < WORLD; i++) {
        struct tsr_save_result result;
        expect_ok(tsr_agent_save_wait(ranks[i].agent, PATIENCE_S, &result));
        if (result.code != code)
            fail_msg("rank %d: expected %s, found %s (%s)", i, tsr_error_name(code),
                     tsr_error_name(result.code), result.error);
        assert_int_equal(result.step, step);
        assert_int_equal(ranks[i].ended.code, code);
        assert_int_equal(ranks[i].ended.step, step);
    }
}

// The newest checkpoint is this one (0: there is none), is whole, and nothing else lies about.
static inline void expect_newest(int64_t step) {
    char path[TSR_PATH_MAX];
    int64_t found = 0;
    int rc = tsr_checkpoint_latest(run_dir, INT64_MAX, &found, path);
    expect_ok(rc);
    assert_int_equal(rc, step > 0);
    if (step > 0) {
        assert_int_equal(found, step);
        expect_ok(tsr_checkpoint_verify(path, 0, 1));
    }
}

#endif
