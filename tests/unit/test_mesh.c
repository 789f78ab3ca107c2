#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "core/error.h"
#include "dist/comm.h"
#include "dist/mesh.h"

// Ranks and places are in one-to-one correspondence, tp fastest.
static void test_ranks(void **state) {
    (void)state;
    for (int tp = 1; tp <= 4; tp++)
        for (int pp = 1; pp <= 4; pp++)
            for (int dp = 1; dp <= 4; dp++) {
                int expected = 0;
                for (int d = 0; d < dp; d++)
                    for (int p = 0; p < pp; p++)
                        for (int t = 0; t < tp; t++, expected++) {
                            struct tsr_mesh m;
                            tsr_mesh_place(&m, tp, pp, dp, expected);
                            assert_int_equal(m.tp_rank, t);
                            assert_int_equal(m.pp_rank, p);
                            assert_int_equal(m.dp_rank, d);
                            assert_int_equal(m.rank, expected);
                            assert_int_equal(m.world, tp * pp * dp);
                            assert_int_equal(m.chunks, 1);
                            assert_int_equal(m.V, tp);
                            assert_int_equal(m.W, dp);
                            assert_int_equal(tsr_mesh_rank(&m, t, p, d), expected);
                        }
            }
}

// Stages take consecutive layers, all of them, nearly equal; chunk c of all ranks comes before
// chunk c + 1 of any.
static void test_layers(void **state) {
    (void)state;
    for (int pp = 1; pp <= 8; pp++)
        for (int chunks = 1; chunks <= 4; chunks++)
            for (int64_t n = 0; n <= 40; n++) {
                struct tsr_mesh m;
                tsr_mesh_place(&m, 2, pp, 2, 0);
                m.chunks = chunks;
                int64_t next = 0;
                for (int c = 0; c < chunks; c++)
                    for (int p = 0; p < pp; p++) {
                        int stage = tsr_mesh_stage(&m, p, c);
                        assert_int_equal(stage, c * pp + p);
                        struct tsr_range l = tsr_mesh_layers(&m, n, stage);
                        assert_int_equal(l.lo, next);
                        assert_in_range(tsr_range_len(l), n / (pp * chunks),
                                        (n + pp * chunks - 1) / (pp * chunks));
                        next = l.hi;
                    }
                assert_int_equal(next, n);
            }
}

static int fake_copy(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    (void)ctx;
    memcpy(dst, src, n_bytes);
    return 0;
}

// A group of one: sums are what they were, slices are copied, nothing is sent.
static void test_single(void **state) {
    (void)state;
    const struct tsr_ops ops = {.name = "test", .copy = fake_copy};
    struct tsr_ctx ctx = {.ops = &ops};
    struct tsr_progress progress = {0};
    struct tsr_comm c;
    assert_int_equal(tsr_comm_open_single(&c, &progress), 0);
    assert_int_equal(c.world, 1);
    assert_int_equal(c.rank, 0);
    assert_int_equal(c.local_size, 1);
    assert_true(c.host[0] != 0);
    struct tsr_group g;
    assert_int_equal(c.ops->group_open(&c, &g, "tp", (const int[]){0}, 1, TSR_TRAFFIC_TP), 0);
    assert_int_equal(g.size, 1);
    assert_string_equal(g.name, "tp");
    float a[3] = {1, 2, 3}, b[3] = {0};
    assert_int_equal(c.ops->all_reduce(&ctx, &c, &g, a, 3, NULL), 0);
    assert_int_equal(c.ops->all_reduce_max(&ctx, &c, &g, a, 3), 0);
    assert_int_equal(c.ops->reduce_scatter(&ctx, &c, &g, b, a, (const size_t[]){2}, NULL), 0);
    assert_memory_equal(b, ((const float[]){1, 2, 0}), sizeof b);
    assert_int_equal(c.ops->all_gather(&ctx, &c, &g, b, a, (const size_t[]){sizeof a}, NULL), 0);
    assert_memory_equal(b, a, sizeof b);
    assert_int_equal(c.ops->all_gather(&ctx, &c, &g, b, b, (const size_t[]){sizeof b}, NULL), 0);
    assert_int_equal(c.ops->broadcast(&ctx, &c, &g, a, sizeof a, 0), 0);
    assert_int_equal(c.ops->barrier(&ctx, &c, &g, "test", 1.0), 0);
    struct tsr_request r = {0};
    assert_int_equal(c.ops->wait(&ctx, &c, &r), 0);
    assert_memory_equal(a, ((const float[]){1, 2, 3}), sizeof a);
    assert_int_equal(atomic_load(&progress.collective), 8);
    for (int k = 0; k < TSR_N_TRAFFIC; k++)
        assert_int_equal(c.bytes_sent[k], 0);
    c.ops->group_close(&c, &g);
    tsr_comm_close(&c);
}

static void test_environment(void **state) {
    (void)state;
    struct tsr_comm c;
    setenv("TESSERA_TIMEOUT", "2.5", 1);
    assert_int_equal(tsr_comm_open_single(&c, NULL), 0);
    assert_true(c.timeout_s == 2.5);
    tsr_comm_close(&c);
    static const char *const wrong[] = {"0", "-1", "soon", "1s", "inf", "nan", "1e999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        setenv("TESSERA_TIMEOUT", wrong[i], 1);
        assert_int_equal(tsr_comm_open_single(&c, NULL), TSR_EUSAGE);
        assert_non_null(strstr(tsr_error_text(), wrong[i]));
    }
    unsetenv("TESSERA_TIMEOUT");
    assert_int_equal(tsr_comm_open_single(&c, NULL), 0);
    assert_true(c.timeout_s == 600);
    tsr_comm_close(&c);
}

static void test_under_mpi(void **state) {
    (void)state;
    static const char *const names[] = {
        "OMPI_COMM_WORLD_SIZE", "PMIX_RANK",    "PMI_RANK",
        "SLURM_NTASKS",         "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unsetenv(names[i]);
    assert_false(tsr_comm_under_mpi());
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    assert_true(tsr_comm_under_mpi());
    unsetenv("OMPI_COMM_WORLD_SIZE");
    setenv("PMIX_RANK", "0", 1);
    assert_true(tsr_comm_under_mpi());
    unsetenv("PMIX_RANK");
    // A batch script is not a rank; a task of srun is one, with or without PMIx.
    setenv("SLURM_NTASKS", "4", 1);
    setenv("SLURM_PROCID", "0", 1);
    assert_false(tsr_comm_under_mpi());
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    assert_true(tsr_comm_under_mpi());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks),     cmocka_unit_test(test_layers),
        cmocka_unit_test(test_single),    cmocka_unit_test(test_environment),
        cmocka_unit_test(test_under_mpi),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
