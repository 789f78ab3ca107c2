// The coordinator without memory, at every allocation of a whole save: messages fail or the save
// is aborted, nothing leaks, and with memory again the next save succeeds.
#include "coordinator_support.h"

#if defined(__SANITIZE_ADDRESS__) // it has these names itself
enum { CAN_FAIL = 0 };
#else
enum { CAN_FAIL = 1 };
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);
#endif

static bool counting;          // inside the coordinator
static long countdown, n_live; // the allocation that fails: 0: none

static inline bool fails(void) {
    return counting && countdown > 0 && --countdown == 0;
}

#if !defined(__SANITIZE_ADDRESS__)
void *malloc(size_t n) {
    void *p = fails() ? NULL : __libc_malloc(n);
    n_live += p != NULL;
    return p;
}

void *calloc(size_t n, size_t size) {
    void *p = fails() ? NULL : __libc_calloc(n, size);
    n_live += p != NULL;
    return p;
}

void *realloc(void *old, size_t n) {
    void *p = fails() ? NULL : __libc_realloc(old, n);
    n_live += p != NULL && old == NULL;
    return p;
}

void free(void *p) {
    n_live -= p != NULL;
    __libc_free(p);
}
#endif

// What the harness itself needs is never refused.
static void send_with_memory(void *arg, int conn, uint16_t type, const ProtobufCMessage *m) {
    bool was = counting;
    counting = false;
    rig_send(arg, conn, type, m);
    counting = was;
}

static struct rig *open_failing(int *rc) {
    struct rig *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->world = 2;
    r->rows = 8;
    const struct tsr_coord_opt opt = {.run_name = "unit", .run_dir = "/run", .epoch = RIG_EPOCH};
    const struct tsr_coord_seam seam = {.arg = r,
                                        .now = rig_now,
                                        .send = send_with_memory,
                                        .drop = rig_drop,
                                        .disk = rig_disk,
                                        .failed = rig_failed};
    counting = true;
    *rc = tsr_coord_open(&r->c, &opt, &seam);
    counting = false;
    if (*rc == 0)
        rig_disk_ok(r, TSR_DISK_FIND_NEWEST, 0);
    return r;
}

// A rank whose message failed has lost its connection, and comes back.
static void join_again(struct rig *r, int rank) {
    for (int tries = 0; tries < 3; tries++)
        if (rig_hello(r, rank, RIG_CONN + rank) == 0 &&
            rig_map(r, rank, 4 * rank, 4 * rank + 4) == 0)
            return;
    fail_msg("rank %d can't join", rank);
}

static bool save_once(struct rig *r, uint64_t step, uint32_t attempt) {
    for (int i = 0; i < 2; i++)
        assert_int_equal(rig_ready(r, i, step, attempt), 0);
    assert_int_equal(rig_plan(r, step, attempt), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(rig_vote(r, i, step, attempt, 1, false), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(rig_digests(r, i, step, attempt, (uint64_t)i, 1), 0);
    for (int i = 0; i < 8 && r->busy; i++)
        rig_answer(r, 0, NULL, RIG_EPOCH);
    assert_false(r->busy);
    return rig_last(r, RIG_CONN, FRAME(SAVE_DONE)) != NULL;
}

// True when an allocation was refused on the way.
static bool script(long fail_at) {
    int rc;
    countdown = fail_at;
    struct rig *r = open_failing(&rc);
    if (rc == 0) {
        counting = true;
        join_again(r, 0);
        join_again(r, 1);
        bool done = save_once(r, 50, 1);
        Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
        rc = tsr_coord_status(r->c, &s);
        if (rc == 0)
            tsr_coord_status_free(&s);
        else
            assert_int_equal(rc, TSR_ENOMEM);
        counting = false;
        if (!done)
            assert_int_equal(
                ((const Tessera__Checkpoint__SaveAbort *)rig_last(r, -1, FRAME(SAVE_ABORT)))
                    ->attempt,
                1);
        rig_forget(r);
        assert_true(save_once(r, 60, 2));
    } else {
        assert_int_equal(rc, TSR_ENOMEM);
        assert_null(r->c);
    }
    bool refused = fail_at > 0 && countdown == 0;
    rig_close(r);
    return refused;
}

static void test_every_allocation(void **state) {
    (void)state;
    tsr_log_level(TSR_LOG_ERROR);
    if (!CAN_FAIL) {
        assert_false(script(0));
        skip();
    }
    script(0); // what libraries keep for good
    long at = 1, before = n_live;
    while (script(at)) {
        assert_int_equal(n_live, before);
        at++;
    }
    assert_true(at > 20);
    assert_int_equal(n_live, before);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
