// Every call of the MPI transport, and of the transports of devices over it, against a reference
// that each rank computes from all ranks' inputs: equal bits, through shared memory and through
// messages. Run by mpirun with 1 to 8 ranks.
// usage: test_comm [host | staged | OBJECT.so | staged:OBJECT.so | abort]
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/philox.h"
#include "tests/parallel/comm_test.h"

void check_eq(struct fixture *f, long long found, long long expected, const char *what,
              const char *file, int line) {
    if (found == expected)
        return;
    fprintf(stderr, "%s:%d: rank %d, %s: %s: found %lld, expected %lld\n", file, line, f->c.rank,
            f->shm ? "shared memory" : "messages", what, found, expected);
    tsr_comm_abort(&f->c, 1);
}

void check_bits(struct fixture *f, const float *found, const float *expected, size_t n,
                const char *what) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&found[i], &expected[i], sizeof *found) != 0) {
            fprintf(stderr, "%s of %zu: [%zu] found %a, expected %a\n", what, n, i, found[i],
                    expected[i]);
            check_eq(f, (long long)i, -1, what, __FILE__, __LINE__);
        }
}

float input(int call, int r, size_t i) {
    struct tsr_rng_key key = tsr_rng_key(7, TSR_RNG_BENCH, (uint32_t)call, (uint32_t)r);
    struct tsr_u32x4 u = tsr_philox(key, (uint32_t)i, (uint32_t)(i >> 32), 0, 0);
    return (float)(int32_t)u.v[0] / (float)(1u << (u.v[1] % 24));
}

// The tree of core/pieces.h, level by level as its comment says.
float tree_of(int call, int size, size_t i) {
    float node[64];
    for (int r = 0; r < size; r++)
        node[r] = input(call, r, i);
    for (; size > 1; size = (size + 1) / 2)
        for (int k = 0; k < (size + 1) / 2; k++)
            node[k] = 2 * k + 1 < size ? node[2 * k] + node[2 * k + 1] : node[2 * k];
    return node[0];
}

static float *new_floats(size_t n) {
    float *x = malloc((n + 1) * sizeof *x); // n may be 0
    if (!x)
        abort();
    return x;
}

static float *new_input(int call, int rank, size_t n) {
    float *x = new_floats(n);
    for (size_t i = 0; i < n; i++)
        x[i] = input(call, rank, i);
    return x;
}

static size_t piece_len(size_t n, int r, int p) {
    return n * (size_t)(r + 1) / (size_t)p - n * (size_t)r / (size_t)p;
}

static uint64_t sent(const struct fixture *f) {
    uint64_t n = 0;
    for (int k = 0; k < TSR_N_TRAFFIC; k++)
        n += f->c.bytes_sent[k];
    return n;
}

// The formula of dist/comm.h.
static uint64_t reduce_bytes(size_t n, const struct tsr_group *g) {
    size_t own = piece_len(n, g->rank, g->size);
    return 4 * ((n - own) + (size_t)(g->size - 1) * own);
}

static void check_reduce(struct fixture *f, struct tsr_group *g, size_t n, int call) {
    float *x = new_input(call, g->rank, n), *expected = new_floats(n);
    size_t differs = 0;
    for (size_t i = 0; i < n; i++) {
        expected[i] = tree_of(call, g->size, i);
        float chain = input(call, 0, i);
        for (int r = 1; r < g->size; r++)
            chain += input(call, r, i);
        differs += chain != expected[i];
    }
    // With four ranks or more another order gives other bits, so that this test means something.
    if (g->size >= 4 && n >= 100)
        CHECK_EQ(f, differs > 0, 1);
    uint64_t before = sent(f), calls = f->progress.collective;
    float *dev = up(f, x, n * sizeof *x);
    CHECK_OK(f, f->c.ops->all_reduce(&f->ctx, &f->c, g, dev, n, NULL));
    down(f, x, dev, n * sizeof *x);
    check_bits(f, x, expected, n, "all_reduce");
    CHECK_EQ(f, sent(f) - before, g->size == 1 ? 0 : reduce_bytes(n, g));
    uint64_t counted = f->progress.collective - calls;
    CHECK_EQ(f, f->transport == HOST ? counted == 1 : counted >= 1, 1);
    free(x);
    free(expected);
}

// Several collectives of one group under way at once, whose results are there after wait.
static void check_requests(struct fixture *f, struct tsr_group *g) {
    enum { N = 3000, CALLS = 3 };
    struct tsr_request r[CALLS];
    float *x[CALLS], *dev[CALLS], *expected = new_floats(N);
    for (int k = 0; k < CALLS; k++) {
        x[k] = new_input(90 + k, g->rank, N);
        dev[k] = up(f, x[k], N * sizeof **x);
    }
    for (int k = 0; k < CALLS; k++) {
        memset(&r[k], 0xAA, sizeof r[k]); // whatever stood there
        CHECK_OK(f, f->c.ops->all_reduce(&f->ctx, &f->c, g, dev[k], N, &r[k]));
    }
    for (int k = 0; k < CALLS; k++) {
        CHECK_OK(f, f->c.ops->wait(&f->ctx, &f->c, &r[k]));
        down(f, x[k], dev[k], N * sizeof **x);
        for (size_t i = 0; i < N; i++)
            expected[i] = tree_of(90 + k, g->size, i);
        check_bits(f, x[k], expected, N, "all_reduce with a request");
        free(x[k]);
    }
    free(expected);
}

static void check_max(struct fixture *f, struct tsr_group *g, size_t n, int call) {
    float *x = new_input(call, g->rank, n), *expected = new_floats(n);
    for (size_t i = 0; i < n; i++) {
        expected[i] = input(call, 0, i);
        for (int r = 1; r < g->size; r++)
            expected[i] = fmaxf(expected[i], input(call, r, i));
    }
    if (n > 2) {
        x[1] = expected[1] = -INFINITY;
        if (g->rank == g->size / 2)
            x[2] = NAN;
    }
    uint64_t before = sent(f);
    float *dev = up(f, x, n * sizeof *x);
    CHECK_OK(f, f->c.ops->all_reduce_max(&f->ctx, &f->c, g, dev, n));
    down(f, x, dev, n * sizeof *x);
    CHECK_EQ(f, sent(f) - before, g->size == 1 ? 0 : reduce_bytes(n, g));
    if (n > 2) {
        CHECK_EQ(f, isnan(x[2]) != 0, 1);
        x[2] = expected[2];
    }
    check_bits(f, x, expected, n, "all_reduce_max");
    free(x);
    free(expected);
}

// Slices of very different lengths, empty ones among them.
static size_t slice_len(int shape, int r) {
    switch (shape) {
    case 0:
        return 0;
    case 1:
        return r % 2 ? 0 : 5;
    case 2:
        return (size_t)r * 1001 + 3;
    case 3:
        return r == 0 ? 70001 : 1;
    default:
        return 17000;
    }
}

static void check_slices(struct fixture *f, struct tsr_group *g, int shape, bool in_place,
                         int call) {
    size_t counts[64] = {0}, n_bytes[64], total = 0, own_at = 0;
    for (int r = 0; r < g->size; r++) {
        counts[r] = slice_len(shape, r);
        own_at += r < g->rank ? counts[r] : 0;
        total += counts[r];
    }
    size_t own = counts[g->rank];
    float *x = new_input(call, g->rank, total), *expected = new_floats(total);
    for (size_t i = 0; i < total; i++)
        expected[i] = tree_of(call, g->size, i);
    float *slice = new_floats(own), *dev = up(f, x, total * sizeof *x);
    float *dev_slice = in_place ? dev + own_at : up(f, slice, own * sizeof *x);
    uint64_t before = sent(f);
    CHECK_OK(f, f->c.ops->reduce_scatter(&f->ctx, &f->c, g, dev_slice, dev, counts, NULL));
    if (!in_place)
        down(f, slice, dev_slice, own * sizeof *x);
    down(f, x, dev, total * sizeof *x);
    if (in_place)
        memcpy(slice, x + own_at, own * sizeof *x);
    check_bits(f, slice, expected + own_at, own, "reduce_scatter");
    CHECK_EQ(f, sent(f) - before, g->size == 1 ? 0 : 4 * (total - own));
    // Bytes, one fewer than whole floats where there are any: odd lengths and addresses.
    char *all = malloc(4 * total + 1), *whole = malloc(4 * total + 1);
    size_t at = 0, own_byte = 0;
    for (int r = 0; r < g->size; r++) {
        n_bytes[r] = counts[r] ? 4 * counts[r] - 1 : 0;
        own_byte = r == g->rank ? at : own_byte;
        for (size_t i = 0; i < n_bytes[r]; i++)
            whole[at++] = (char)(i * 7 + (size_t)r * 13 + (size_t)call);
    }
    memset(all, 0x55, 4 * total + 1);
    memcpy(all + own_byte, whole + own_byte, n_bytes[g->rank]);
    before = sent(f);
    char *dev_all = up(f, all, 4 * total + 1), *dev_whole = up(f, whole, 4 * total + 1);
    CHECK_OK(f, f->c.ops->all_gather(&f->ctx, &f->c, g, dev_all,
                                     in_place ? dev_all + own_byte : dev_whole + own_byte, n_bytes,
                                     NULL));
    down(f, all, dev_all, 4 * total + 1);
    down(f, whole, dev_whole, 4 * total + 1);
    CHECK_EQ(f, memcmp(all, whole, at), 0);
    CHECK_EQ(f, all[at], 0x55);
    CHECK_EQ(f, sent(f) - before, (size_t)(g->size - 1) * n_bytes[g->rank]);
    free(slice);
    free(x);
    free(expected);
    free(all);
    free(whole);
}

static void check_broadcast(struct fixture *f, struct tsr_group *g, size_t n_bytes) {
    char *buf = malloc(n_bytes + 1), *expected = malloc(n_bytes + 1);
    uint64_t before = sent(f);
    for (int root = 0; root < g->size; root++) {
        for (size_t i = 0; i < n_bytes; i++)
            expected[i] = (char)(i * 11 + (size_t)root);
        expected[n_bytes] = 0x55;
        memset(buf, 0x55, n_bytes + 1);
        if (g->rank == root)
            memcpy(buf, expected, n_bytes);
        char *dev = up(f, buf, n_bytes + 1);
        CHECK_OK(f, f->c.ops->broadcast(&f->ctx, &f->c, g, dev, n_bytes, root));
        down(f, buf, dev, n_bytes + 1);
        CHECK_EQ(f, memcmp(buf, expected, n_bytes + 1), 0);
    }
    // Over all roots each rank stands once at each place of the tree: p - 1 messages in all.
    CHECK_EQ(f, sent(f) - before, (size_t)(g->size - 1) * n_bytes);
    free(expected);
    free(buf);
}

static void check_group(struct fixture *f, struct tsr_group *g) {
    static const size_t sizes[] = {0, 1, 2, 3, 5, 7, 8, 1000, 4096, 4097, 16385, 65537, 140001};
    // The largest, of several rounds, where ranks stand in order: the reference takes its time.
    bool large = g == &f->world;
    size_t n_sizes = sizeof sizes / sizeof *sizes - (large ? 0 : 3);
    for (size_t i = 0; i < n_sizes; i++) {
        check_reduce(f, g, sizes[i], (int)i);
        check_max(f, g, sizes[i], 100 + (int)i);
    }
    for (int shape = 0; shape < (large ? 5 : 3); shape++) {
        check_slices(f, g, shape, false, 200 + shape);
        check_slices(f, g, shape, true, 300 + shape);
    }
    check_requests(f, g);
    check_broadcast(f, g, 0);
    check_broadcast(f, g, 1);
    check_broadcast(f, g, large ? 300007 : 4001);
    CHECK_OK(f, f->c.ops->barrier(&f->ctx, &f->c, g, "test", 30));
    test_send_recv(f, g);
}

// Many calls of many sizes in a row, on several groups, ranks out of step: buffers must not be
// filled again before the others have read them.
static void check_mixed(struct fixture *f) {
    struct tsr_group *groups[] = {&f->world, &f->pair, &f->stride, &f->turned};
    for (int k = 0; k < 60; k++) {
        struct tsr_group *g = groups[k % 4];
        if ((k * 5 + f->c.rank * 3) % 7 == 0)
            usleep(300);
        if (k % 3 == 2)
            check_slices(f, g, 2, k % 2, 1000 + k);
        else
            check_reduce(f, g, (size_t)(k * k * 7 % 6000 + k % 3), 1000 + k);
    }
}

// Ranks of one host name, in order of rank, are one host.
static void check_hosts(struct fixture *f) {
    size_t n_bytes[64];
    for (int r = 0; r < f->c.world; r++)
        n_bytes[r] = sizeof f->host[0];
    CHECK_OK(f, f->c.control->all_gather(&f->ctx, &f->c, &f->c.world_group, f->host, f->c.host,
                                         n_bytes, NULL));
    int rank = 0, size = 0;
    for (int r = 0; r < f->c.world; r++) {
        bool here = strcmp(f->host[r], f->c.host) == 0;
        rank += here && r < f->c.rank;
        size += here;
    }
    CHECK_EQ(f, f->c.local_rank, rank);
    CHECK_EQ(f, f->c.local_size, size);
}

static bool on_one_host(const struct fixture *f, const struct tsr_mpi_group *g) {
    for (int r = 0; r < g->size; r++)
        if (strcmp(f->host[g->world_rank[r]], f->c.host) != 0)
            return false;
    return true;
}

static void open_groups(struct fixture *f, bool shm) {
    struct tsr_mpi *m = f->c.impl;
    f->shm = shm;
    m->shared_memory = shm;
    int n = f->c.world, all[64], turned[64], pair[2], stride[64], n_stride = 0;
    for (int r = 0; r < n; r++) {
        all[r] = r;
        turned[r] = n - 1 - r;
        if (r % 2 == f->c.rank % 2)
            stride[n_stride++] = r;
    }
    pair[0] = f->c.rank / 2 * 2;
    pair[1] = pair[0] + 1;
    const struct tsr_comm_ops *o = f->c.ops;
    CHECK_OK(f, o->group_open(&f->c, &f->world, "all", all, n, TSR_TRAFFIC_DP));
    CHECK_OK(f, o->group_open(&f->c, &f->turned, "turned", turned, n, TSR_TRAFFIC_OTHER));
    CHECK_OK(f, o->group_open(&f->c, &f->pair, "tp", pair, pair[1] < n ? 2 : 1, TSR_TRAFFIC_TP));
    CHECK_OK(f, o->group_open(&f->c, &f->stride, "dp", stride, n_stride, TSR_TRAFFIC_PP));
    CHECK_EQ(f, f->turned.rank, n - 1 - f->c.rank);
    struct tsr_group *groups[] = {&f->world, &f->turned, &f->pair, &f->stride};
    for (int i = 0; i < 4; i++) {
        struct tsr_mpi_group *g = groups[i]->impl;
        CHECK_EQ(f, g->shm != NULL, shm && g->size > 1 && on_one_host(f, g));
        g->part = g->shm ? g->part : 1500; // several rounds of messages with little data
        device_group(f, groups[i]);
    }
}

static void close_groups(struct fixture *f) {
    f->c.ops->group_close(&f->c, &f->stride);
    f->c.ops->group_close(&f->c, &f->pair);
    f->c.ops->group_close(&f->c, &f->turned);
    f->c.ops->group_close(&f->c, &f->world);
}

static void check_traffic_kinds(struct fixture *f) {
    float x[4] = {1, 2, 3, 4};
    uint64_t before[TSR_N_TRAFFIC];
    memcpy(before, f->c.bytes_sent, sizeof before);
    float *dev = up(f, x, sizeof x);
    CHECK_OK(f, f->c.ops->all_reduce(&f->ctx, &f->c, &f->pair, dev, 4, NULL));
    down(f, x, dev, sizeof x);
    for (int k = 0; k < TSR_N_TRAFFIC; k++)
        CHECK_EQ(f, f->c.bytes_sent[k] - before[k],
                 k == TSR_TRAFFIC_TP && f->pair.size == 2 ? 16 : 0);
}

int main(int argc, char **argv) {
    struct fixture f = {0};
    int rc = tsr_comm_open_mpi(&f.c, &argc, &argv, &f.progress);
    if (rc < 0)
        tsr_comm_abort(&f.c, tsr_exit_code(rc));
    if (argc > 1 && strcmp(argv[1], "abort") == 0) {
        if (f.c.rank == f.c.world - 1) {
            rc = tsr_fail(TSR_EPEER, "test of abort");
            tsr_comm_abort(&f.c, tsr_exit_code(rc));
        }
        sleep(20);
        return 1;
    }
    f.c.timeout_s = 60;
    check_hosts(&f);
    device_open(&f, argc > 1 ? argv[1] : "host");
    for (int shm = 1; shm >= 0; shm--) {
        open_groups(&f, shm);
        check_group(&f, &f.world);
        check_group(&f, &f.turned);
        check_group(&f, &f.pair);
        check_group(&f, &f.stride);
        check_mixed(&f);
        check_traffic_kinds(&f);
        test_split_messages(&f, &f.world);
        test_progress_in_barrier(&f);
        test_zero(&f);
        if (f.transport != DEVICE)
            test_timeouts(&f);
        close_groups(&f);
    }
    CHECK_EQ(&f, f.c.seconds > 0, 1);
    if (f.c.rank == 0)
        printf("%d ranks: all equal\n", f.c.world);
    device_close(&f);
    tsr_comm_close(&f.c);
    return 0;
}
