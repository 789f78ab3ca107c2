// Memory that ranks of one host read of each other: any number of ranks, segments of any size.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "core/error.h"
#include "dist/comm_mpi.h"
#include "dist/host_memory.h"

static struct tsr_comm comm;
static struct tsr_progress progress;
static struct tsr_ctx ctx;

static void must(int rc) {
    if (rc < 0)
        tsr_comm_abort(&comm, 1); // a rank alone must not fail: the others would wait
}

static size_t size_of(int rank, int round) {
    return round == 0 ? 0 : (size_t)rank * 100003 * (size_t)round + 1;
}

static char byte_of(int rank, size_t i, int round) {
    return (char)(i * 31 + (size_t)rank * 7 + (size_t)round);
}

static bool check_segment(const struct tsr_host_memory *m, int rank, int round) {
    bool same = m->n_bytes[rank] == size_of(rank, round);
    for (size_t i = 0; same && i < m->n_bytes[rank]; i++)
        same = m->at[rank][i] == byte_of(rank, i, round);
    return same;
}

static void test_all_see_all(void **state) {
    (void)state;
    for (int round = 0; round < 4; round++) {
        struct tsr_host_memory m;
        bool same = true;
        must(tsr_host_memory_open(&m, &ctx, &comm, size_of(comm.rank, round)));
        assert_int_equal(m.n, comm.world);
        assert_int_equal(m.mine, comm.rank);
        for (int i = 0; i < 1000; i++)
            atomic_fetch_add(m.counter, 1);
        for (int again = 0; again < 2; again++) { // what changes is seen
            for (size_t i = 0; i < m.n_bytes[m.mine]; i++)
                m.at[m.mine][i] = byte_of(comm.rank, i, again == 0 ? round + 1 : round);
            must(comm.ops->barrier(&ctx, &comm, &comm.world_group, "test", 60));
            assert_int_equal(atomic_load(m.counter), 1000 * comm.world); // all count on one
            for (int r = 0; again == 1 && r < m.n; r++)
                same = same && check_segment(&m, r, round);
            must(comm.ops->barrier(&ctx, &comm, &comm.world_group, "test", 60));
        }
        tsr_host_memory_close(&m);
        assert_true(same);
    }
}

// On hosts of different names nobody looks for the other's memory, and all agree on it.
static void test_other_hosts(void **state) {
    (void)state;
    struct tsr_host_memory m;
    char host[sizeof comm.host];
    memcpy(host, comm.host, sizeof host);
    snprintf(comm.host, sizeof comm.host, "host%d", comm.rank % 2);
    must(tsr_host_memory_open(&m, &ctx, &comm, 10));
    memcpy(comm.host, host, sizeof host);
    assert_int_equal(m.n, comm.world / 2 + (comm.world % 2 == 1 && comm.rank % 2 == 0));
    assert_int_equal(m.mine, comm.rank / 2);
    tsr_host_memory_close(&m);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_see_all),
        cmocka_unit_test(test_other_hosts),
    };
    if (tsr_comm_open_mpi(&comm, &argc, &argv, &progress) < 0 || tsr_cpu_open(&ctx, NULL, 1) < 0) {
        fprintf(stderr, "%s\n", tsr_error_text());
        return 1;
    }
    int failed = cmocka_run_group_tests_name("host_memory", tests, NULL, NULL);
    ctx.ops->close(&ctx);
    tsr_comm_close(&comm);
    return failed;
}
