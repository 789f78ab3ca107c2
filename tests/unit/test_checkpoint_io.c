// The way of a checkpoint's bytes to the disk, against a naive writer: whatever mixture of region
// borders, of whole pages and ends, of O_DIRECT and page cache, the files are the same, and so are
// the digests that were made on the way. The test stands between the writer and the kernel.
#include "tests/unit/checkpoint_support.h"
#include "tests/unit/direct_support.h"

#include "core/checkpoint_private.h"

// ---- the kernel, as it may be

static struct {
    int direct_until_einval; // direct ones, then EINVAL; -1: never
    long full_at;            // number of the call from which on the disk is full; 0: never
    _Atomic long n_direct_bytes;
} writes;

static void reset_kernel(void) {
    memset(&kernel, 0, sizeof kernel);
    memset(&writes, 0, sizeof writes);
    writes.direct_until_einval = -1;
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t offset) {
    bool direct = is_direct(fd);
    long k = count_call(direct, buf, n, offset);
    if (writes.full_at > 0 && k >= writes.full_at) {
        errno = ENOSPC;
        return -1;
    }
    if (is_due(k, kernel.interrupted_every)) {
        errno = EINTR;
        return -1;
    }
    if (direct && writes.direct_until_einval >= 0 &&
        kernel.n_direct >= writes.direct_until_einval) {
        errno = EINVAL;
        return -1;
    }
    if (is_due(k, kernel.short_every) && n > DISK_BLOCK)
        n = n / DISK_BLOCK * DISK_BLOCK - (direct ? DISK_BLOCK : 1000);
    ssize_t done = n > 0 ? (ssize_t)syscall(SYS_pwrite64, fd, buf, n, offset) : 0;
    if (direct && done > 0) {
        kernel.n_direct++;
        writes.n_direct_bytes += done;
    }
    return done;
}

// ---- a model of a few tensors, and the files as they must be

enum { N_TENSORS = 6, RANGE = 1 << 16 };
static const int64_t shapes[N_TENSORS][2] = {{13, 1},   {300, 257}, {1, 1},
                                             {5, 5000}, {900, 700}, {77, 1024}};
static struct tsr_tensor tensors[N_TENSORS];
static struct tsr_tensor_table table = {.n = N_TENSORS, .t = tensors};
static float *values[3][N_TENSORS]; // by part
static struct fixture x;
static uint64_t seed;

static uint64_t rnd(uint64_t n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % n;
}

static int start(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    for (int i = 0; i < N_TENSORS; i++) {
        struct tsr_tensor *t = &tensors[i];
        *t = (struct tsr_tensor){.kind = TSR_T_UP_W,
                                 .rows = shapes[i][0],
                                 .cols = shapes[i][1],
                                 .hf_out_rows = shapes[i][0],
                                 .hf_ndim = shapes[i][1] == 1 ? 1 : 2};
        snprintf(t->name, sizeof t->name, "t%d", i);
        snprintf(t->hf_name, sizeof t->hf_name, "hf%d", i);
        for (int part = 0; part < 3; part++) {
            values[part][i] = malloc((size_t)(t->rows * t->cols) * sizeof(float));
            for (int64_t k = 0; k < t->rows * t->cols; k++)
                values[part][i][k] = (float)k + 0.25f * (float)part + (float)i * 1e-3f;
        }
    }
    x.opt.table = &table;
    x.opt.max_file_bytes = 0;
    x.opt.range_bytes = RANGE;
    reset_kernel();
    return 0;
}

static int finish(void **state) {
    (void)state;
    reset_kernel();
    for (int i = 0; i < N_TENSORS; i++)
        for (int part = 0; part < 3; part++)
            free(values[part][i]);
    close_fixture(&x);
    return 0;
}

// The bytes of file k: header, then tensors one after another.
static struct tsr_buf image(const struct tsr_checkpoint *c, int k) {
    struct tsr_buf b = {0};
    expect_ok(tsr_buf_append(&b, c->files[k].header.data, c->files[k].header.len));
    for (int i = 0; i < N_TENSORS; i++)
        expect_ok(tsr_buf_append(&b, values[k][i],
                                 (size_t)(tensors[i].rows * tensors[i].cols) * sizeof(float)));
    return b;
}

static void check_files(const struct tsr_checkpoint *c, const struct gathered *g) {
    assert_int_equal(c->n_files, 3);
    uint64_t first = 0;
    for (int p = 0; p < g->plan.n_files; p++) {
        const char *name = g->plan.files[p].path;
        for (int k = 0; k < 3; k++) {
            char path[TSR_PATH_MAX];
            size_t n;
            if (strcmp(c->files[k].path, name) != 0)
                continue;
            struct tsr_buf want = image(c, k);
            expect_ok(tsr_path_join(path, c->tmp, name));
            char *found = read_bytes(path, &n);
            assert_int_equal(n, want.len);
            for (size_t i = 0; i < n; i++)
                if (found[i] != want.data[i])
                    fail_msg("%s: byte %zu differs", name, i);
            for (size_t at = 0, r = 0; at < n; at += RANGE, r++) {
                size_t left = n - at < RANGE ? n - at : RANGE;
                struct tsr_digest d = tsr_ckpt_digest_bytes(want.data + at, left);
                if (!g->have[first + r] || memcmp(&d, &g->digests[first + r], sizeof d) != 0)
                    fail_msg("%s: wrong digest of range %zu", name, r);
            }
            free(found);
            tsr_buf_free(&want);
        }
        first += (uint64_t)tsr_ckpt_n_ranges(g->plan.files[p].size, RANGE);
    }
}

// ---- ranks that write

static int write_region(struct tsr_checkpoint *c, int part, int i, struct tsr_region r) {
    return tsr_checkpoint_write(c, (enum tsr_checkpoint_part)part, &tensors[i], r,
                                values[part][i] + r.r0 * tensors[i].cols + r.c0, tensors[i].cols);
}

// Cuts each tensor at random rows, sometimes at random columns too; each piece goes to a random
// rank, in the order of the file or, with `disorder`, wildly.
struct piece {
    int part, tensor, rank;
    struct tsr_region region;
};

static struct piece pieces[20000];

static int cut(int n_ranks, bool disorder) {
    int n = 0;
    for (int part = 0; part < 3; part++)
        for (int i = 0; i < N_TENSORS; i++) {
            const struct tsr_tensor *t = &tensors[i];
            bool columns = t->cols > 1 && rnd(3) == 0;
            for (int64_t r0 = 0; r0 < t->rows;) {
                int64_t r1 = r0 + 1 + (int64_t)rnd((uint64_t)(rnd(2) ? t->rows : 20));
                r1 = r1 < t->rows ? r1 : t->rows;
                int64_t c = columns ? 1 + (int64_t)rnd((uint64_t)t->cols - 1) : t->cols;
                struct tsr_region left = {r0, r1, 0, c}, right = {r0, r1, c, t->cols};
                pieces[n++] = (struct piece){part, i, (int)rnd((uint64_t)n_ranks), left};
                if (c < t->cols)
                    pieces[n++] = (struct piece){part, i, (int)rnd((uint64_t)n_ranks), right};
                r0 = r1;
            }
        }
    for (int i = n - 1; disorder && i > 0; i--) {
        int k = (int)rnd((uint64_t)i + 1);
        struct piece p = pieces[i];
        pieces[i] = pieces[k];
        pieces[k] = p;
    }
    return n;
}

enum manner { IN_ORDER, DISORDERED, SHARED, TWO_HOSTS };

// All ranks' pieces, or those of every second rank; the ranks share the writing.
static void write_shares(struct tsr_checkpoint **c, int n_ranks, int n, int hosts) {
    static struct tsr_checkpoint_source sources[20000];
    for (int host = 0; host < hosts; host++) {
        int k = 0;
        for (int i = 0; i < n; i++)
            if (pieces[i].rank % hosts == host) {
                const struct piece *p = &pieces[i];
                const struct tsr_tensor *t = &tensors[p->tensor];
                sources[k++] = (struct tsr_checkpoint_source){
                    (enum tsr_checkpoint_part)p->part, t, p->region,
                    values[p->part][p->tensor] + p->region.r0 * t->cols + p->region.c0, t->cols};
            }
        for (int r = host; r < n_ranks; r += hosts)
            expect_ok(tsr_checkpoint_write_shares(c[r], sources, k, 2 * (n_ranks / hosts), deal,
                                                  &(struct dealt){r / hosts, n_ranks / hosts}));
    }
}

// Returns how many ranges had to be read back.
static uint64_t save(int n_ranks, enum manner how, uint64_t s) {
    struct tsr_checkpoint *c[4];
    struct gathered g;
    seed = s;
    x.opt.attempt++;
    for (int i = 0; i < n_ranks; i++)
        expect_ok(tsr_checkpoint_open(&c[i], &x.opt));
    expect_ok(tsr_checkpoint_begin(c[0], &x.state, NULL, NULL));
    open_gathered(&g, &x, c[0]);
    int n = cut(n_ranks, how != IN_ORDER);
    if (how >= SHARED)
        write_shares(c, n_ranks, n, how == TWO_HOSTS ? 2 : 1);
    for (int i = 0; how < SHARED && i < n; i++)
        expect_ok(
            write_region(c[pieces[i].rank], pieces[i].part, pieces[i].tensor, pieces[i].region));
    for (int i = 0; i < n_ranks; i++) {
        struct tsr_save_vote v;
        expect_ok(tsr_checkpoint_flush(c[i], &v));
        gather(&g, &v);
    }
    assert_true(g.elements == g.plan.elements);
    read_back(&g, c, n_ranks);
    check_files(c[0], &g);
    assert_int_equal(kernel.n_unaligned, 0);
    uint64_t n_read_back = g.n_read_back;
    free_gathered(&g);
    expect_ok(tsr_checkpoint_abort(c[0]));
    for (int i = 0; i < n_ranks; i++)
        tsr_checkpoint_close(c[i]);
    return n_read_back;
}

static void save_mixtures(uint64_t first_seed) {
    for (int i = 0; i < 6; i++)
        save(1 + i % 4, i % 2 ? DISORDERED : IN_ORDER, first_seed + (uint64_t)i);
    save(4, TWO_HOSTS, first_seed);
}

// ---- tests

// One rank in order: everything but the first page is written by O_DIRECT and digested on the way;
// only files without tensors are read back.
static void save_in_order(bool direct) {
    struct tsr_checkpoint *c;
    struct tsr_save_vote v;
    struct gathered g;
    x.opt.attempt++;
    expect_ok(tsr_checkpoint_open(&c, &x.opt));
    expect_ok(tsr_checkpoint_begin(c, &x.state, NULL, NULL));
    open_gathered(&g, &x, c);
    for (int part = 0; part < 3; part++)
        for (int i = 0; i < N_TENSORS; i++)
            expect_ok(write_region(c, part, i,
                                   (struct tsr_region){0, tensors[i].rows, 0, tensors[i].cols}));
    expect_ok(tsr_checkpoint_flush(c, &v));
    gather(&g, &v);
    read_back(&g, &c, 1);
    assert_int_equal(g.n_read_back, g.plan.n_files - 3);
    check_files(c, &g);
    uint64_t n_bytes = c->files[0].size + c->files[1].size + c->files[2].size;
    if (direct)
        assert_true((uint64_t)writes.n_direct_bytes > n_bytes - 6 * 4096);
    else
        assert_int_equal(writes.n_direct_bytes, 0);
    free_gathered(&g);
    expect_ok(tsr_checkpoint_abort(c));
    tsr_checkpoint_close(c);
}

static void test_in_order(void **state) {
    (void)state;
    save_in_order(true);
    reset_kernel();
    x.opt.buffered = true;
    save_in_order(false);
    x.opt.buffered = false;
    kernel.no_direct_open = true;
    save_in_order(false);
}

static void test_mixtures(void **state) {
    (void)state;
    save_mixtures(1);
    assert_true(kernel.n_direct > 10);
}

// However the state is cut: who can read all of it digests all of it on the way, and hands nearly
// all to the disk in whole pages.
static void test_shares(void **state) {
    (void)state;
    for (int n_ranks = 1; n_ranks <= 4; n_ranks++) {
        reset_kernel();
        uint64_t n_small = save(n_ranks, SHARED, 500 + (uint64_t)n_ranks);
        assert_int_equal(n_small, 3); // config.json, the index, state.json
        assert_true(writes.n_direct_bytes > 8 << 20);
    }
}

static void test_mixtures_buffered(void **state) {
    (void)state;
    x.opt.buffered = true;
    save_mixtures(100);
    assert_int_equal(kernel.n_direct, 0);
}

static void test_refused_later(void **state) {
    (void)state;
    for (int n = 0; n < 4; n++) {
        reset_kernel();
        writes.direct_until_einval = n;
        save(1 + n % 2, IN_ORDER, 200 + (uint64_t)n);
        assert_in_range(kernel.n_direct, n, n + 1); // one may be under way when another is refused
    }
}

static void test_short_and_interrupted(void **state) {
    (void)state;
    kernel.short_every = 3;
    kernel.interrupted_every = 5;
    save_mixtures(300);
    assert_true(kernel.n_direct > 10);
}

// The disk is full from some write on: one error with the path, and nothing is left open or
// waiting, however many buffers are under way.
static void test_full(void **state) {
    (void)state;
    save(1, IN_ORDER, 400);
    const long n = kernel.n_calls;
    for (long at = 4; at <= n; at += n / 25 + 1) { // the first three are begin's
        struct tsr_checkpoint *c;
        struct tsr_save_vote v;
        reset_kernel();
        writes.full_at = at;
        x.opt.attempt++;
        seed = 400;
        expect_ok(tsr_checkpoint_open(&c, &x.opt));
        expect_ok(tsr_checkpoint_begin(c, &x.state, NULL, NULL));
        int n_pieces = cut(1, false), rc = 0;
        for (int i = 0; rc == 0 && i < n_pieces; i++)
            rc = write_region(c, pieces[i].part, pieces[i].tensor, pieces[i].region);
        if (rc == 0)
            rc = tsr_checkpoint_flush(c, &v);
        expect_error(rc, TSR_ENOSPC, c->tmp);
        expect_ok(tsr_checkpoint_abort(c));
        assert_false(tsr_path_exists(c->tmp));
        tsr_checkpoint_close(c);
    }
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_in_order),      WITH(test_mixtures),
        WITH(test_shares),        WITH(test_mixtures_buffered),
        WITH(test_refused_later), WITH(test_short_and_interrupted),
        WITH(test_full),
    };
    return cmocka_run_group_tests_name("checkpoint_io", tests, NULL, NULL);
}
