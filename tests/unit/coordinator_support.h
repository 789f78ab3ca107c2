// A coordinator without a world: messages are put in by hand, what it sends is kept, the clock and
// the disk do as the test says.
#ifndef TSR_TESTS_UNIT_COORDINATOR_SUPPORT_H
#define TSR_TESTS_UNIT_COORDINATOR_SUPPORT_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "launcher/control/registry.h"
#include "launcher/coordinator/coordinator.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

enum { RIG_SENT = 65536, RIG_CONN = 100 /* of rank 0; the others' follow */, RIG_EPOCH = 7 };

struct rig {
    struct tsr_coord *c;
    double now;
    struct {
        int conn;
        uint16_t type;
        ProtobufCMessage *m;
    } sent[RIG_SENT];
    int n_sent, n_failed, dropped;
    struct tsr_disk_job job; // in flight when busy
    bool busy;
    int world, rows; // rows of the one tensor, dealt out evenly
    char cause[256], operation[256];
    uint32_t culprit;
    uint64_t ended_pid; // of a process that is known to have ended; 0: none
};

static double rig_now(void *arg) {
    return ((struct rig *)arg)->now;
}

static void rig_send(void *arg, int conn, uint16_t type, const ProtobufCMessage *m) {
    struct rig *r = arg;
    uint8_t *bytes = malloc(protobuf_c_message_get_packed_size(m) + 1);
    assert_non_null(bytes);
    size_t n = protobuf_c_message_pack(m, bytes);
    assert_true(r->n_sent < RIG_SENT);
    r->sent[r->n_sent].conn = conn;
    r->sent[r->n_sent].type = type;
    r->sent[r->n_sent++].m = protobuf_c_message_unpack(tsr_frame_descriptor(type), NULL, n, bytes);
    free(bytes);
}

static void rig_drop(void *arg, int conn) {
    ((struct rig *)arg)->dropped = conn;
}

static bool rig_ended(void *arg, const char *host, uint64_t pid) {
    assert_true(host[0] != 0);
    return ((struct rig *)arg)->ended_pid == pid;
}

static void rig_disk(void *arg, const struct tsr_disk_job *job) {
    struct rig *r = arg;
    assert_false(r->busy);
    r->busy = true;
    r->job = *job;
}

static void rig_failed(void *arg, const Tessera__Control__Failed *f) {
    struct rig *r = arg;
    r->n_failed++;
    r->culprit = f->rank;
    snprintf(r->cause, sizeof r->cause, "%s", f->cause);
    snprintf(r->operation, sizeof r->operation, "%s", f->operation);
}

static void rig_forget(struct rig *r) {
    for (int i = 0; i < r->n_sent; i++)
        protobuf_c_message_free_unpacked(r->sent[i].m, NULL);
    r->n_sent = 0;
}

static void rig_answer(struct rig *r, int rc, const char *error, uint64_t value) {
    assert_true(r->busy);
    r->busy = false;
    tsr_coord_disk_done(r->c, r->job.id, rc, error, value);
}

// The disk job in flight must be of this step; it succeeds.
static inline void rig_disk_ok(struct rig *r, enum tsr_disk_step step, uint64_t value) {
    assert_true(r->busy);
    assert_int_equal(r->job.step, step);
    rig_answer(r, 0, NULL, value);
}

static inline struct rig *rig_open(int world) {
    struct rig *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->world = world;
    r->rows = 4 * world;
    r->dropped = -1;
    r->now = 1000;
    const struct tsr_coord_opt opt = {
        .run_name = "unit", .run_dir = "/run", .epoch = RIG_EPOCH, .keep = 3, .restarts = 2};
    const struct tsr_coord_seam seam = {.arg = r,
                                        .now = rig_now,
                                        .send = rig_send,
                                        .drop = rig_drop,
                                        .disk = rig_disk,
                                        .failed = rig_failed,
                                        .ended = rig_ended};
    tsr_log_level(TSR_LOG_ERROR);
    assert_int_equal(tsr_coord_open(&r->c, &opt, &seam), 0);
    rig_disk_ok(r, TSR_DISK_FIND_NEWEST, 40);
    return r;
}

static void rig_close(struct rig *r) {
    rig_forget(r);
    tsr_coord_close(r->c);
    free(r);
}

// The newest message of a type on a connection (-1: any), or NULL.
static inline const void *rig_last(const struct rig *r, int conn, uint16_t type) {
    for (int i = r->n_sent - 1; i >= 0; i--)
        if (r->sent[i].type == type && (conn < 0 || r->sent[i].conn == conn))
            return r->sent[i].m;
    return NULL;
}

static inline int rig_count(const struct rig *r, uint16_t type) {
    int n = 0;
    for (int i = 0; i < r->n_sent; i++)
        n += r->sent[i].type == type;
    return n;
}

static inline Tessera__Control__Hello rig_hello_of(const struct rig *r, int rank) {
    Tessera__Control__Hello h = TESSERA__CONTROL__HELLO__INIT;
    h.version = 1;
    h.epoch = RIG_EPOCH;
    h.rank = (uint32_t)rank;
    h.world = (uint32_t)r->world;
    h.tp = 1;
    h.pp = 1;
    h.dp = (uint32_t)r->world;
    h.host = "node";
    h.pid = 5000 + (uint64_t)rank;
    h.steps = 100;
    return h;
}

static inline int rig_hello(struct rig *r, int rank, int conn) {
    Tessera__Control__Hello h = rig_hello_of(r, rank);
    return tsr_coord_message(r->c, conn, FRAME(HELLO), &h.base);
}

static inline void rig_beat(struct rig *r, int rank, uint64_t step, enum tsr_phase phase,
                            uint64_t collective) {
    Tessera__Control__Heartbeat h = TESSERA__CONTROL__HEARTBEAT__INIT;
    h.step = step;
    h.phase = (Tessera__Control__Phase)phase;
    h.collective = collective;
    assert_int_equal(tsr_coord_message(r->c, RIG_CONN + rank, FRAME(HEARTBEAT), &h.base), 0);
}

// Rows from..to of the one tensor.
static inline int rig_map(struct rig *r, int rank, int from, int to) {
    Tessera__Checkpoint__ShardMap m = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
    Tessera__Checkpoint__TensorShards t = TESSERA__CHECKPOINT__TENSOR_SHARDS__INIT, *tp = &t;
    Tessera__Checkpoint__Region g = TESSERA__CHECKPOINT__REGION__INIT, *gp = &g;
    t.name = "w";
    t.rows = (uint64_t)r->rows;
    t.cols = 10;
    t.n_regions = 1;
    t.regions = &gp;
    g.r0 = (uint64_t)from;
    g.r1 = (uint64_t)to;
    g.c1 = 10;
    m.n_tensors = 1;
    m.tensors = &tp;
    m.n_parts = 1;
    return tsr_coord_message(r->c, RIG_CONN + rank, FRAME(SHARD_MAP), &m.base);
}

static inline void rig_all_join(struct rig *r) {
    for (int i = 0; i < r->world; i++) {
        assert_int_equal(rig_hello(r, i, RIG_CONN + i), 0);
        assert_int_equal(rig_map(r, i, 4 * i, 4 * i + 4), 0);
    }
}

// Time passes; ranks that the mask has are alive and stay where they are.
static inline void rig_pass(struct rig *r, double seconds, unsigned beating, uint64_t step,
                            enum tsr_phase phase, uint64_t collective) {
    for (int i = 0; i < (int)(seconds / 0.05 + 0.5); i++) {
        r->now += 0.05;
        for (int rank = 0; rank < r->world && i % 5 == 0; rank++)
            if (beating & 1u << rank)
                rig_beat(r, rank, step, phase, collective);
        tsr_coord_tick(r->c);
    }
}

// ---- a save's messages: one file of as many ranges as there are ranks, each rank's own one; a
// rank may keep its digest to itself

static inline int rig_plan(struct rig *r, uint64_t step, uint32_t attempt) {
    char temporary[128];
    Tessera__Checkpoint__SavePlan m = TESSERA__CHECKPOINT__SAVE_PLAN__INIT;
    Tessera__Checkpoint__PlannedFile f = TESSERA__CHECKPOINT__PLANNED_FILE__INIT, *fp = &f;
    snprintf(temporary, sizeof temporary, ".tmp-step-%08d-e%08d-a%d", (int)step, RIG_EPOCH,
             (int)attempt);
    f.path = "model.safetensors";
    f.size = (uint64_t)r->world * 4096 - 1;
    m.step = step;
    m.attempt = attempt;
    m.temporary = temporary;
    m.range_bytes = 4096;
    m.n_files = 1;
    m.files = &fp;
    m.elements = (uint64_t)r->rows * 10 * 3;
    return tsr_coord_message(r->c, RIG_CONN, FRAME(SAVE_PLAN), &m.base);
}

static inline int rig_ready(struct rig *r, int rank, uint64_t step, uint32_t attempt) {
    Tessera__Checkpoint__SaveReady m = TESSERA__CHECKPOINT__SAVE_READY__INIT;
    m.step = step;
    m.attempt = attempt;
    return tsr_coord_message(r->c, RIG_CONN + rank, FRAME(SAVE_READY), &m.base);
}

static inline int rig_vote(struct rig *r, int rank, uint64_t step, uint32_t attempt, int ok,
                           bool with_digest) {
    Tessera__Checkpoint__SaveVote m = TESSERA__CHECKPOINT__SAVE_VOTE__INIT;
    Tessera__Checkpoint__RangeDigests d = TESSERA__CHECKPOINT__RANGE_DIGESTS__INIT, *dp = &d;
    uint8_t digest[16];
    memset(digest, rank + 1, sizeof digest);
    m.step = step;
    m.attempt = attempt;
    m.ok = ok;
    m.error = ok ? "" : "the disk is full";
    m.exit_code = ok ? 0 : 3;
    m.elements = 4 * 10 * 3;
    d.first = (uint64_t)rank;
    d.digests.data = digest;
    d.digests.len = sizeof digest;
    m.n_ranges = with_digest;
    m.ranges = &dp;
    return tsr_coord_message(r->c, RIG_CONN + rank, FRAME(SAVE_VOTE), &m.base);
}

static inline int rig_digests(struct rig *r, int rank, uint64_t step, uint32_t attempt,
                              uint64_t first, uint64_t count) {
    Tessera__Checkpoint__SaveDigests m = TESSERA__CHECKPOINT__SAVE_DIGESTS__INIT;
    Tessera__Checkpoint__RangeDigests d = TESSERA__CHECKPOINT__RANGE_DIGESTS__INIT, *dp = &d;
    uint8_t digests[16 * 16];
    assert_true(count <= 16);
    for (uint64_t i = 0; i < count; i++)
        memset(digests + 16 * i, (int)(first + i) + 1, 16);
    m.step = step;
    m.attempt = attempt;
    m.ok = 1;
    d.first = first;
    d.digests.data = digests;
    d.digests.len = 16 * count;
    m.n_ranges = 1;
    m.ranges = &dp;
    return tsr_coord_message(r->c, RIG_CONN + rank, FRAME(SAVE_DIGESTS), &m.base);
}

// Up to where every rank is asked to write.
static inline void rig_begin_save(struct rig *r, uint64_t step, uint32_t attempt) {
    for (int i = 0; i < r->world; i++)
        assert_int_equal(rig_ready(r, i, step, attempt), 0);
    assert_int_equal(rig_plan(r, step, attempt), 0);
}

static inline void rig_all_vote(struct rig *r, uint64_t step, uint32_t attempt) {
    for (int i = 0; i < r->world; i++)
        assert_int_equal(rig_vote(r, i, step, attempt, 1, true), 0);
}

#endif
