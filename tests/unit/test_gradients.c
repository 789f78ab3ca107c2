// Comparing the gradients of two layouts: files that agree, files that were altered, files that
// are broken.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/grad_dump.h"
#include "launcher/gradients.h"
#include "scratch.h"

static struct tsr_model model;
static struct tsr_tensor_table table;

static int setup(void **state) {
    static const char config[] =
        "{\"model_type\": \"llama\", \"hidden_size\": 8, \"num_hidden_layers\": 2, "
        "\"vocab_size\": 12, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
        "\"intermediate_size\": 6, \"tie_word_embeddings\": false}";
    if (scratch_setup(state) != 0)
        return -1;
    return tsr_model_parse(&model, config, "test") == 0 &&
                   tsr_tensor_table_build(&table, &model) == 0
               ? 0
               : -1;
}

static int teardown(void **state) {
    tsr_tensor_table_free(&table);
    tsr_model_free(&model);
    return scratch_teardown(state);
}

// One piece of a file that is to be written.
struct piece {
    const struct tsr_tensor *t;
    int64_t r0, r1, c0, c1;
};

struct file {
    struct piece pieces[64];
    int n;
    double loss, grad_norm;
    const struct tsr_tensor *alter; // this element
    int64_t row, col;
    float to;
    enum tsr_dtype dtype; // of the pieces; F32 is 0
    bool no_scalars;
};

static float value_of(const struct tsr_tensor *t, int64_t row, int64_t col) {
    return (float)(t - table.t) + 0.5f + (float)(row * t->cols + col) / 64.0f;
}

static void write_rank(const char *dir, int rank, const struct file *f) {
    char path[TSR_PATH_MAX];
    struct tsr_st_entry entries[66];
    char names[66][160];
    struct tsr_buf out = {0};
    int n = 0, n_scalars = rank == 0 && !f->no_scalars ? 2 : 0;
    if (n_scalars) {
        entries[n++] = (struct tsr_st_entry){
            .name = (char *)"loss", .dtype = TSR_DT_F64, .ndim = 2, .shape = {1, 1}};
        entries[n++] = (struct tsr_st_entry){
            .name = (char *)"grad_norm", .dtype = TSR_DT_F64, .ndim = 2, .shape = {1, 1}};
    }
    for (int i = 0; i < f->n; i++) {
        const struct piece *p = &f->pieces[i];
        snprintf(names[n], sizeof names[n], "%s@%d,%d", p->t->name, (int)p->r0, (int)p->c0);
        entries[n] = (struct tsr_st_entry){.name = names[n],
                                           .dtype = f->dtype,
                                           .ndim = 2,
                                           .shape = {p->r1 - p->r0, p->c1 - p->c0}};
        n++;
    }
    assert_int_equal(tsr_st_header(entries, n, &out), 0);
    if (n_scalars) {
        assert_int_equal(tsr_buf_append(&out, &f->loss, sizeof f->loss), 0);
        assert_int_equal(tsr_buf_append(&out, &f->grad_norm, sizeof f->grad_norm), 0);
    }
    for (int i = 0; i < f->n; i++) {
        const struct piece *p = &f->pieces[i];
        for (int64_t r = p->r0; r < p->r1; r++)
            for (int64_t c = p->c0; c < p->c1; c++) {
                bool altered = p->t == f->alter && r == f->row && c == f->col;
                float v = altered ? f->to : value_of(p->t, r, c);
                assert_int_equal(tsr_buf_append(&out, &v, sizeof v), 0);
            }
    }
    assert_int_equal(tsr_grad_dump_path(path, dir, 1, rank), 0);
    scratch_write(path, out.data, out.len);
    tsr_buf_free(&out);
}

// A layout of one rank that holds everything.
static struct file whole_file(void) {
    struct file f = {.loss = 2.5, .grad_norm = 7.0};
    for (int i = 0; i < table.n; i++)
        f.pieces[f.n++] = (struct piece){&table.t[i], 0, table.t[i].rows, 0, table.t[i].cols};
    return f;
}

// Rank r of two: rows by halves where there are several columns, whole vectors on both.
static struct file half_file(int rank) {
    struct file f = {.loss = 2.5, .grad_norm = 7.0};
    for (int i = 0; i < table.n; i++) {
        const struct tsr_tensor *t = &table.t[i];
        int64_t half = t->rows / 2;
        struct piece p = {t, rank ? half : 0, rank ? t->rows : half, 0, t->cols};
        if (t->cols == 1) {
            p.r0 = 0;
            p.r1 = t->rows;
        }
        f.pieces[f.n++] = p;
    }
    return f;
}

static const char *folder(const char *name) {
    const char *dir = scratch(name);
    assert_int_equal(tsr_remove_tree(dir), 0);
    assert_int_equal(tsr_mkdir_p(dir), 0);
    return dir;
}

// Compares one rank's whole file with two ranks' halves.
static int compare(struct tsr_difference *d, const struct file *a, const struct file *b0,
                   const struct file *b1) {
    struct tsr_gradients g[2] = {{0}, {0}};
    const char *one = folder("one"), *two = folder("two");
    write_rank(one, 0, a);
    write_rank(two, 0, b0);
    write_rank(two, 1, b1);
    int rc = tsr_gradients_open(&g[0], one, 1, 1);
    if (rc == 0)
        rc = tsr_gradients_open(&g[1], two, 1, 2);
    if (rc == 0)
        rc = tsr_gradients_compare(d, &g[0], &g[1], &table);
    tsr_gradients_close(&g[0]);
    tsr_gradients_close(&g[1]);
    return rc;
}

static const struct tsr_tensor *named(const char *name) {
    const struct tsr_tensor *t = tsr_tensor_by_name(&table, name);
    assert_non_null(t);
    return t;
}

static void test_equal(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1);
    struct tsr_difference d;
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_true(tsr_gradients_equal(&d));
    assert_int_equal(d.n_tensors, table.n);
    assert_int_equal(d.n_different, 0);
    assert_true(d.distance == 0.0);
}

static void test_one_element(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1);
    struct tsr_difference d;
    b1.alter = named("model.layers.1.mlp.down_proj.weight");
    b1.row = 6;
    b1.col = 3;
    float old = value_of(b1.alter, 6, 3);
    b1.to = nextafterf(old, INFINITY);
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_false(tsr_gradients_equal(&d));
    assert_int_equal(d.n_different, 1);
    assert_string_equal(d.name, "model.layers.1.mlp.down_proj.weight");
    assert_string_equal(d.last, d.name);
    assert_string_equal(d.far, d.name);
    assert_int_equal(d.layer, 1);
    assert_int_equal(d.first.row, 6);
    assert_int_equal(d.first.col, 3);
    assert_true(d.first.a == old && d.first.b == b1.to);
    assert_int_equal(d.within, 0);
    assert_true(d.distance > 0 && d.distance < 1e-6);
}

static void test_bits(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1);
    struct tsr_difference d;
    a.alter = b0.alter = named("lm_head.weight");
    a.to = 0.0f;
    b0.to = -0.0f;
    assert_int_equal(compare(&d, &a, &b0, &b1), 0); // equal numbers, other bits
    assert_int_equal(d.n_different, 1);
    assert_int_equal(d.layer, -1);
    assert_true(d.distance == 0.0);
    a.to = b0.to = NAN; // the same bits
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_true(tsr_gradients_equal(&d));
    a.to = 1.0f;
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_int_equal(d.n_different, 1);
    assert_true(isnan(d.distance));
}

static void test_first_and_last(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1);
    struct tsr_difference d;
    a.alter = named("model.layers.0.self_attn.q_proj.weight");
    b0.alter = named("model.layers.1.self_attn.v_proj.weight");
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_int_equal(d.n_different, 2);
    assert_string_equal(d.name, "model.layers.0.self_attn.q_proj.weight");
    assert_string_equal(d.last, "model.layers.1.self_attn.v_proj.weight");
}

static void test_copies_that_disagree(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1);
    struct tsr_difference d;
    b1.alter = named("model.norm.weight");
    b1.row = 2;
    b1.to = 9.0f;
    assert_int_equal(compare(&d, &a, &b0, &b1), 0); // both ranks hold all of it
    assert_int_equal(d.n_different, 1);
    assert_int_equal(d.within, 2);
    assert_string_equal(d.name, "model.norm.weight");
    assert_int_equal(d.first.row, 2);
    assert_true(d.first.b == 9.0f);
}

static void test_loss_alone(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1);
    struct tsr_difference d;
    b0.loss = nextafter(2.5, 3.0);
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_int_equal(d.n_different, 0);
    assert_false(tsr_gradients_equal(&d));
    b0.loss = 2.5;
    b0.grad_norm = 7.5;
    assert_int_equal(compare(&d, &a, &b0, &b1), 0);
    assert_false(tsr_gradients_equal(&d));
}

static void test_broken(void **state) {
    (void)state;
    struct file a = whole_file(), b0 = half_file(0), b1 = half_file(1), f;
    struct tsr_difference d;
    f = b1;
    f.n--; // a piece is missing
    assert_int_equal(compare(&d, &a, &b0, &f), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), f.pieces[f.n].t->name));
    f = b1;
    f.pieces[0].r1++; // beyond the tensor
    assert_int_equal(compare(&d, &a, &b0, &f), TSR_EDATA);
    f = b1;
    f.pieces[0].c0++; // beyond it to the right
    f.pieces[0].c1++;
    assert_int_equal(compare(&d, &a, &b0, &f), TSR_EDATA);
    f = b1;
    f.dtype = TSR_DT_I32;
    assert_int_equal(compare(&d, &a, &b0, &f), TSR_EDATA);
    f = b0;
    f.no_scalars = true;
    assert_int_equal(compare(&d, &a, &f, &b1), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "loss"));
    struct tsr_gradients g;
    assert_true(tsr_gradients_open(&g, scratch("two"), 1, 3) < 0); // no such rank
    assert_true(tsr_gradients_open(&g, scratch("two"), 2, 2) < 0); // no such step
    char path[TSR_PATH_MAX];
    assert_int_equal(tsr_grad_dump_path(path, scratch("two"), 1, 1), 0);
    assert_int_equal(truncate(path, 100), 0);
    assert_true(tsr_gradients_open(&g, scratch("two"), 1, 2) < 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal),
        cmocka_unit_test(test_one_element),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_first_and_last),
        cmocka_unit_test(test_copies_that_disagree),
        cmocka_unit_test(test_loss_alone),
        cmocka_unit_test(test_broken),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
