// Shard maps: what covers a model once, what leaves holes or overlaps, and messages no rank sends.
#include "coordinator_support.h"
#include "core/philox.h"
#include "launcher/coordinator/shard_map.h"

struct region {
    int rank;
    uint64_t r0, r1, c0, c1;
};

enum { ROWS = 12, COLS = 9, WORLD = 4, MAX_REGIONS = 64 };

// One part of one tensor.
static int put(struct tsr_shard_maps *m, int rank, const struct region *v, int n, uint32_t part,
               uint32_t n_parts) {
    Tessera__Checkpoint__ShardMap p = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
    Tessera__Checkpoint__TensorShards t = TESSERA__CHECKPOINT__TENSOR_SHARDS__INIT, *tp = &t;
    Tessera__Checkpoint__Region g[MAX_REGIONS], *list[MAX_REGIONS];
    t.name = "w";
    t.rows = ROWS;
    t.cols = COLS;
    for (int i = 0; i < n; i++) {
        if (v[i].rank != rank)
            continue;
        tessera__checkpoint__region__init(&g[t.n_regions]);
        g[t.n_regions].r0 = v[i].r0;
        g[t.n_regions].r1 = v[i].r1;
        g[t.n_regions].c0 = v[i].c0;
        g[t.n_regions].c1 = v[i].c1;
        list[t.n_regions] = &g[t.n_regions];
        t.n_regions++;
    }
    t.regions = list;
    p.n_tensors = 1;
    p.tensors = &tp;
    p.part = part;
    p.n_parts = n_parts;
    return tsr_shard_maps_put(m, rank, &p);
}

static enum tsr_cover cover(const struct region *v, int n) {
    struct tsr_shard_maps m;
    assert_int_equal(tsr_shard_maps_init(&m, WORLD), 0);
    for (int rank = 0; rank < WORLD; rank++)
        assert_int_equal(put(&m, rank, v, n, 0, 1), 0);
    enum tsr_cover found = tsr_shard_maps_check(&m);
    assert_int_equal(tsr_shard_maps_check(&m), found); // remembered
    tsr_shard_maps_free(&m);
    return found;
}

// Counts owners of each element.
static enum tsr_cover naive(const struct region *v, int n, bool *both) {
    int owners[ROWS][COLS] = {0};
    bool hole = false, overlap = false;
    for (int i = 0; i < n; i++)
        for (uint64_t r = v[i].r0; r < v[i].r1; r++)
            for (uint64_t c = v[i].c0; c < v[i].c1; c++)
                owners[r][c]++;
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) {
            hole |= owners[r][c] == 0;
            overlap |= owners[r][c] > 1;
        }
    *both = hole && overlap;
    return hole ? TSR_COVER_HOLE : overlap ? TSR_COVER_OVERLAP : TSR_COVER_WHOLE;
}

static uint32_t draw(uint32_t *at, uint32_t n) {
    return tsr_philox((struct tsr_rng_key){1, 2}, (*at)++, 0, 0, 0).v[0] % n;
}

// Cuts a rectangle at random until the pieces are small.
static int cut(struct region *v, int n, struct region r, uint32_t *at, int depth) {
    uint64_t rows = r.r1 - r.r0, cols = r.c1 - r.c0;
    if (depth == 0 || n > MAX_REGIONS / 2 || rows * cols < 2 || draw(at, 4) == 0) {
        r.rank = (int)draw(at, WORLD);
        v[n] = r;
        return n + 1;
    }
    struct region a = r, b = r;
    if (cols < 2 || (rows > 1 && draw(at, 2)))
        a.r1 = b.r0 = r.r0 + 1 + draw(at, (uint32_t)rows - 1);
    else
        a.c1 = b.c0 = r.c0 + 1 + draw(at, (uint32_t)cols - 1);
    n = cut(v, n, a, at, depth - 1);
    return cut(v, n, b, at, depth - 1);
}

// Random tilings are whole; with one edge moved they are what counting owners says.
static void test_random(void **state) {
    (void)state;
    uint32_t at = 0;
    int seen[3] = {0};
    for (int round = 0; round < 3000; round++) {
        struct region v[MAX_REGIONS];
        bool both;
        int n = cut(v, 0, (struct region){0, 0, ROWS, 0, COLS}, &at, 5);
        assert_int_equal(cover(v, n), TSR_COVER_WHOLE);
        struct region *g = &v[draw(&at, (uint32_t)n)];
        uint64_t *edge[] = {&g->r0, &g->r1, &g->c0, &g->c1};
        uint64_t end[] = {g->r1, ROWS, g->c1, COLS}, begin[] = {0, g->r0, 0, g->c0};
        int which = (int)draw(&at, 4);
        *edge[which] =
            begin[which] + draw(&at, (uint32_t)(end[which] - begin[which]) + 1); // perhaps empty
        enum tsr_cover expected = naive(v, n, &both), found = cover(v, n);
        seen[expected]++;
        if (both)
            assert_true(found == TSR_COVER_HOLE || found == TSR_COVER_OVERLAP);
        else
            assert_int_equal(found, expected);
    }
    for (int i = 0; i < 3; i++)
        assert_true(seen[i] > 100);
}

static void check_text(const struct region *v, int n, enum tsr_cover expected, const char *text) {
    struct tsr_shard_maps m;
    assert_int_equal(tsr_shard_maps_init(&m, WORLD), 0);
    for (int rank = 0; rank < WORLD; rank++)
        assert_int_equal(put(&m, rank, v, n, 0, 1), 0);
    assert_int_equal(tsr_shard_maps_check(&m), expected);
    assert_string_equal(m.text, text);
    tsr_shard_maps_free(&m);
}

static void test_texts(void **state) {
    (void)state;
    const struct region hole[] = {{0, 0, 5, 0, COLS}, {1, 6, ROWS, 0, COLS}};
    check_text(hole, 2, TSR_COVER_HOLE, "nobody owns rows 5 to 6, columns 0 to 9 of w");
    const struct region tail[] = {{0, 0, ROWS, 0, 4}, {1, 0, 11, 4, COLS}};
    check_text(tail, 2, TSR_COVER_HOLE, "nobody owns rows 11 to 12, columns 4 to 9 of w");
    const struct region twice[] = {{0, 0, 6, 0, COLS}, {3, 5, ROWS, 0, COLS}};
    check_text(twice, 2, TSR_COVER_OVERLAP, "ranks 0 and 3 both own row 5, columns 0 to 9 of w");
    check_text(hole, 0, TSR_COVER_HOLE, "nobody owns rows 0 to 12, columns 0 to 9 of w");
}

static void test_parts(void **state) {
    (void)state;
    const struct region a[] = {{0, 0, 6, 0, COLS}}, b[] = {{0, 6, ROWS, 0, COLS}};
    struct tsr_shard_maps m;
    assert_int_equal(tsr_shard_maps_init(&m, 1), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_NO_MAP);
    assert_int_equal(put(&m, 0, a, 1, 0, 2), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_NO_MAP);
    assert_non_null(strstr(m.text, "rank 0 published 1 of 2 parts"));
    assert_int_equal(put(&m, 0, b, 1, 1, 2), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_WHOLE);
    assert_int_equal(tsr_shard_maps_elements(&m, 0), 3 * ROWS * COLS);
    assert_int_equal(put(&m, 0, a, 1, 0, 2), 0); // said again, from the first part on
    assert_int_equal(put(&m, 0, b, 1, 1, 2), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_WHOLE);
    assert_int_equal(tsr_shard_maps_elements(&m, 0), 3 * ROWS * COLS);
    assert_int_equal(put(&m, 0, b, 1, 2, 2), TSR_EREQUEST);
    assert_int_equal(tsr_shard_maps_elements(&m, 0), 0); // nothing is left of it
    assert_int_equal(put(&m, 0, a, 1, 0, 2), 0);
    assert_int_equal(put(&m, 0, b, 1, 1, 3), TSR_EREQUEST);
    assert_int_equal(put(&m, 0, a, 1, 0, 0), TSR_EREQUEST);
    assert_int_equal(put(&m, 0, a, 1, 1, 2), TSR_EREQUEST);
    assert_int_equal(put(&m, 0, a, 1, 0, UINT32_MAX), TSR_EREQUEST);
    tsr_shard_maps_free(&m);
}

static int put_shape(struct tsr_shard_maps *m, int rank, const char *name, uint64_t rows,
                     uint64_t cols, bool frozen, struct region r) {
    Tessera__Checkpoint__ShardMap p = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
    Tessera__Checkpoint__TensorShards t = TESSERA__CHECKPOINT__TENSOR_SHARDS__INIT, *tp = &t;
    Tessera__Checkpoint__Region g = TESSERA__CHECKPOINT__REGION__INIT, *gp = &g;
    g.r0 = r.r0;
    g.r1 = r.r1;
    g.c0 = r.c0;
    g.c1 = r.c1;
    t.name = (char *)name;
    t.rows = rows;
    t.cols = cols;
    t.frozen = frozen;
    t.n_regions = 1;
    t.regions = &gp;
    p.n_tensors = 1;
    p.tensors = &tp;
    p.n_parts = 1;
    return tsr_shard_maps_put(m, rank, &p);
}

static void test_shapes(void **state) {
    (void)state;
    const struct region all = {0, 0, 4, 0, 5}, none = {0, 0, 0, 0, 0};
    struct tsr_shard_maps m;
    assert_int_equal(tsr_shard_maps_init(&m, 2), 0);
    assert_int_equal(put_shape(&m, 0, "w", 4, 5, true, all), 0);
    assert_int_equal(tsr_shard_maps_elements(&m, 0), 20); // frozen: no moments
    assert_int_equal(put_shape(&m, 1, "w", 4, 5, true, none), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_WHOLE);
    assert_int_equal(put_shape(&m, 1, "w", 4, 6, true, none), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_DIFFER);
    assert_non_null(strstr(m.text, "w is 4 x 5 to rank 0 and 4 x 6 to rank 1"));
    assert_int_equal(put_shape(&m, 1, "w", 4, 5, false, none), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_DIFFER);
    assert_int_equal(put_shape(&m, 1, "empty", 0, 5, false, none), 0);
    assert_int_equal(tsr_shard_maps_check(&m), TSR_COVER_WHOLE);
    const uint64_t big = UINT64_C(1) << 40;
    const struct region bad[] = {
        {0, 0, 5, 0, 5}, {0, 0, 4, 0, 6},          {0, 3, 2, 0, 5},
        {0, 0, 4, 5, 4}, {0, 0, UINT64_MAX, 0, 5},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(put_shape(&m, 1, "w", 4, 5, true, bad[i]), TSR_EREQUEST);
    assert_int_equal(put_shape(&m, 1, "v", big, big, true, none), TSR_EREQUEST);
    assert_int_equal(put_shape(&m, 1, "", 4, 5, true, none), TSR_EREQUEST);
    tsr_shard_maps_free(&m);
}

// The coordinator lets no save through whose ranks don't own the model between them.
static void test_refuses(void **state) {
    (void)state;
    static const char *const why[] = {"nobody owns", "both own", "plan has", "has written"};
    for (int i = 0; i < 4; i++) {
        struct rig *r = rig_open(2);
        rig_all_join(r);
        if (i == 0)
            assert_int_equal(rig_map(r, 1, 5, 8), 0);
        else if (i == 1)
            assert_int_equal(rig_map(r, 1, 3, 8), 0);
        else if (i == 2)
            r->rows += 4; // the plan of another model
        else
            assert_int_equal(rig_map(r, 1, 3, 8), 0), assert_int_equal(rig_map(r, 0, 0, 3), 0);
        rig_begin_save(r, 50, 1);
        rig_all_vote(r, 50, 1);
        const Tessera__Checkpoint__SaveAbort *m = rig_last(r, 100, FRAME(SAVE_ABORT));
        assert_non_null(m);
        assert_int_equal(m->exit_code, 70);
        if (!strstr(m->reason, why[i]))
            fail_msg("expected \"%s\" in \"%s\"", why[i], m->reason);
        rig_close(r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random), cmocka_unit_test(test_texts),   cmocka_unit_test(test_parts),
        cmocka_unit_test(test_shapes), cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
