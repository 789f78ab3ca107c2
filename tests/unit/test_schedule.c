// Simulates every stage of every schedule at once: p <= 8 ranks, m <= 32 micro-batches, v <= 4
// chunks per rank. A rank runs its list in order and blocks in receives; sends don't block.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "core/error.h"
#include "dist/schedule.h"

enum { MAX_P = 8, MAX_M = 32, MAX_V = 4, MAX_ACTIONS = 2 * MAX_M * MAX_V };

struct sim {
    enum tsr_pipeline kind;
    int p, m, v;
    int n; // actions per rank
    struct tsr_action list[MAX_P][MAX_ACTIONS];
    int done_at[2][MAX_P * MAX_V][MAX_M]; // end of (kind, stage, micro-batch); 0: not yet
};

static void fill(struct sim *s, enum tsr_pipeline kind, int p, int m, int v) {
    s->kind = kind;
    s->p = p;
    s->m = m;
    s->v = v;
    s->n = tsr_schedule_size(m, v);
    assert_int_equal(s->n, 2 * m * v);
    for (int r = 0; r < p; r++)
        assert_int_equal(tsr_schedule_fill(kind, p, r, v, m, s->list[r]), 0);
}

// When action `a` of rank r may start as far as data goes: -1 while its input isn't there.
static int input_at(const struct sim *s, int r, struct tsr_action a) {
    int stage = a.chunk * s->p + r;
    int last = s->p * s->v - 1;
    if (a.kind == TSR_FORWARD && stage == 0)
        return 0;
    int own = s->done_at[TSR_FORWARD][stage][a.micro_batch];
    if (a.kind == TSR_BACKWARD && own == 0)
        return -1;
    if (a.kind == TSR_BACKWARD && stage == last)
        return own;
    int from = a.kind == TSR_FORWARD ? stage - 1 : stage + 1;
    int t = s->done_at[a.kind][from][a.micro_batch];
    return t == 0 ? -1 : t;
}

// Runs all lists with the given times per action; returns the makespan, or -1 on a deadlock.
static int simulate(struct sim *s, int forward_time, int backward_time) {
    int next[MAX_P] = {0}, free_at[MAX_P] = {0};
    int left = s->p * s->n, end = 0;
    memset(s->done_at, 0, sizeof s->done_at);
    for (bool moved = true; moved;) {
        moved = false;
        for (int r = 0; r < s->p; r++) {
            for (; next[r] < s->n; next[r]++) {
                struct tsr_action a = s->list[r][next[r]];
                int t = input_at(s, r, a);
                if (t < 0)
                    break;
                t = t > free_at[r] ? t : free_at[r];
                t += a.kind == TSR_FORWARD ? forward_time : backward_time;
                free_at[r] = t;
                s->done_at[a.kind][a.chunk * s->p + r][a.micro_batch] = t;
                end = t > end ? t : end;
                left--;
                moved = true;
            }
        }
    }
    return left ? -1 : end;
}

// Each micro-batch once each way per chunk, ascending per chunk in both directions.
static void check_order(const struct sim *s) {
    for (int r = 0; r < s->p; r++) {
        int next[2][MAX_V] = {0};
        for (int i = 0; i < s->n; i++) {
            struct tsr_action a = s->list[r][i];
            assert_in_range(a.kind, TSR_FORWARD, TSR_BACKWARD);
            assert_in_range(a.chunk, 0, s->v - 1);
            assert_int_equal(a.micro_batch, next[a.kind][a.chunk]);
            next[a.kind][a.chunk]++;
        }
        for (int c = 0; c < s->v; c++) {
            assert_int_equal(next[TSR_FORWARD][c], s->m);
            assert_int_equal(next[TSR_BACKWARD][c], s->m);
        }
    }
}

static int min_int(int a, int b) {
    return a < b ? a : b;
}

// Bounds of docs/parallelism.md, all of them reached: in_flight is exact for one chunk, and the
// sum over chunks is exact for the interleaved schedule.
static void check_in_flight(const struct sim *s) {
    for (int r = 0; r < s->p; r++) {
        const struct tsr_action *a = s->list[r];
        int first = tsr_schedule_in_flight(a, s->n, 0);
        if (s->kind == TSR_PIPE_GPIPE) {
            assert_int_equal(first, s->m);
        } else if (s->kind == TSR_PIPE_1F1B) {
            assert_int_equal(first, min_int(s->m, s->p - r));
        } else {
            int all = 0, most = 0;
            for (int i = 0; i < s->n; i++) {
                all += a[i].kind == TSR_FORWARD ? 1 : -1;
                most = all > most ? all : most;
            }
            int bound = 2 * (s->p - r - 1) + (s->v - 1) * s->p + 1;
            assert_int_equal(most, min_int(s->m * s->v, bound));
            for (int c = 0; c < s->v; c++)
                assert_in_range(tsr_schedule_in_flight(a, s->n, c), 1, min_int(s->m, 2 * s->p));
        }
    }
}

// bubble = idle / makespan = (p-1)/(v m + p-1) exactly: the makespan is (v m + p - 1) (f + b), of
// which a rank works v m (f + b).
static void check_bubble(struct sim *s) {
    static const int times[][2] = {{1, 2}, {1, 1}, {3, 5}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        int f = times[i][0], b = times[i][1];
        int makespan = simulate(s, f, b);
        int work = s->v * s->m * (f + b);
        // idle / makespan == (p - 1) / (v m + p - 1), cross-multiplied
        int64_t left = (int64_t)(makespan - work) * (s->v * s->m + s->p - 1);
        assert_int_equal(left, (int64_t)(s->p - 1) * makespan);
    }
}

static void check_all(struct sim *s, enum tsr_pipeline kind, int p, int m, int v) {
    fill(s, kind, p, m, v);
    check_order(s);
    check_in_flight(s);
    check_bubble(s);
}

static void test_gpipe(void **state) {
    (void)state;
    struct sim *s = calloc(1, sizeof *s);
    for (int p = 1; p <= MAX_P; p++)
        for (int m = 1; m <= MAX_M; m++)
            check_all(s, TSR_PIPE_GPIPE, p, m, 1);
    free(s);
}

static void test_1f1b(void **state) {
    (void)state;
    struct sim *s = calloc(1, sizeof *s);
    for (int p = 1; p <= MAX_P; p++)
        for (int m = 1; m <= MAX_M; m++)
            check_all(s, TSR_PIPE_1F1B, p, m, 1);
    free(s);
}

static void test_interleaved(void **state) {
    (void)state;
    struct sim *s = calloc(1, sizeof *s);
    for (int p = 1; p <= MAX_P; p++)
        for (int v = 1; v <= MAX_V; v++)
            for (int m = p; m <= MAX_M; m += p)
                check_all(s, TSR_PIPE_INTERLEAVED, p, m, v);
    free(s);
}

// A schedule whose order blocks is found by the simulator, so that "no deadlock" says something.
static void test_simulator_finds_deadlock(void **state) {
    (void)state;
    struct sim *s = calloc(1, sizeof *s);
    fill(s, TSR_PIPE_1F1B, 2, 2, 1);
    assert_int_equal(simulate(s, 1, 2), 9);
    // The first rank wants its first gradient before it has sent the second micro-batch, and the
    // last rank wants the second micro-batch first.
    static const struct tsr_action first[] = {
        {TSR_FORWARD, 0, 0}, {TSR_BACKWARD, 0, 0}, {TSR_FORWARD, 0, 1}, {TSR_BACKWARD, 0, 1}};
    static const struct tsr_action last[] = {
        {TSR_FORWARD, 0, 0}, {TSR_FORWARD, 0, 1}, {TSR_BACKWARD, 0, 0}, {TSR_BACKWARD, 0, 1}};
    memcpy(s->list[0], first, sizeof first);
    memcpy(s->list[1], last, sizeof last);
    assert_int_equal(simulate(s, 1, 2), -1);
    free(s);
}

static void test_known_lists(void **state) {
    (void)state;
    struct tsr_action a[16];
    // 1F1B, first of 2 stages, 3 micro-batches: F0 F1 B0 F2 B1 B2
    static const int kinds[] = {0, 0, 1, 0, 1, 1}, numbers[] = {0, 1, 0, 2, 1, 2};
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_1F1B, 2, 0, 1, 3, a), 0);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(a[i].kind, kinds[i]);
        assert_int_equal(a[i].micro_batch, numbers[i]);
    }
    // Interleaved, last of 2 stages, 2 chunks, 4 micro-batches: the chunks change after a group
    // of 2 and the first backward belongs to the last chunk.
    static const int order[][3] = {{0, 0, 0}, {0, 0, 1}, {0, 1, 0}, {1, 1, 0}, {0, 1, 1}, {1, 1, 1},
                                   {0, 0, 2}, {1, 0, 0}, {0, 0, 3}, {1, 0, 1}, {0, 1, 2}, {1, 1, 2},
                                   {0, 1, 3}, {1, 1, 3}, {1, 0, 2}, {1, 0, 3}};
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_INTERLEAVED, 2, 1, 2, 4, a), 0);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(a[i].kind, order[i][0]);
        assert_int_equal(a[i].chunk, order[i][1]);
        assert_int_equal(a[i].micro_batch, order[i][2]);
    }
}

static void test_refusals(void **state) {
    (void)state;
    struct tsr_action a[64];
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_INTERLEAVED, 4, 0, 2, 6, a), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "found 6"));
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_INTERLEAVED, 4, 0, 2, 2, a), TSR_ECONFIG);
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_GPIPE, 4, 0, 2, 8, a), TSR_ECONFIG);
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_1F1B, 4, 0, 2, 8, a), TSR_ECONFIG);
    assert_int_equal(tsr_schedule_fill(TSR_PIPE_INTERLEAVED, 1, 0, INT16_MAX + 1, 1, a),
                     TSR_ECONFIG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpipe),       cmocka_unit_test(test_1f1b),
        cmocka_unit_test(test_interleaved), cmocka_unit_test(test_simulator_finds_deadlock),
        cmocka_unit_test(test_known_lists), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
