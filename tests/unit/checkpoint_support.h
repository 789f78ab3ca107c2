// Writes small checkpoints as `n_ranks` simulated ranks would, for the tests of checkpoints.
#ifndef TSR_TESTS_CHECKPOINT_SUPPORT_H
#define TSR_TESTS_CHECKPOINT_SUPPORT_H

#include "tests/unit/files_support.h"

#include "core/checkpoint.h"
#include "core/tensor.h"

struct fixture {
    char dir[TSR_PATH_MAX]; // run directory
    struct tsr_model model;
    struct tsr_tensor_table table;
    struct tsr_checkpoint_opt opt;
    struct tsr_state state;
};

static const char gpt2_json[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":8,\"n_head\":2,\"n_positions\":6,"
    "\"vocab_size\":11,\"n_inner\":20,\"activation_function\":\"gelu_new\"}";

static inline void open_fixture(struct fixture *x, const char *json) {
    memset(x, 0, sizeof *x);
    make_temp_dir(x->dir);
    expect_ok(tsr_model_parse(&x->model, json, "config.json"));
    expect_ok(tsr_tensor_table_build(&x->table, &x->model));
    x->opt = (struct tsr_checkpoint_opt){.run_dir = x->dir,
                                         .model = &x->model,
                                         .table = &x->table,
                                         .dtype = TSR_DT_F32,
                                         .step = 50,
                                         .max_file_bytes = 5000,
                                         .range_bytes = 512};
    x->state = (struct tsr_state){.step = 50,
                                  .updates = 49,
                                  .sequences = 400,
                                  .seed = -3,
                                  .virtual_shards = 8,
                                  .virtual_replicas = 4,
                                  .run_yaml = "train:\n  steps: 60 # \"é\"\n"};
}

static inline void close_fixture(struct fixture *x) {
    tsr_tensor_table_free(&x->table);
    tsr_model_free(&x->model);
    expect_ok(tsr_remove_tree(x->dir));
}

// A value that needs all of fp32's bits, different for each part, tensor, element and step.
static inline float element(const struct fixture *x, enum tsr_checkpoint_part part,
                            const struct tsr_tensor *t, int64_t r, int64_t c) {
    char key[160];
    snprintf(key, sizeof key, "%d %d %s", (int)part, (int)x->opt.step, t->name);
    return value_by_name(key, r * t->cols + c) / 3.0f + (float)r * 1e-3f;
}

// How a simulated rank cuts its regions: by pieces of a split dimension, or in slices of rows
// from the last to the first, out of a wider buffer.
struct layout {
    int n_ranks;
    bool slices;
    int V; // with pieces
};

static inline void write_part_of_region(const struct fixture *x, struct tsr_checkpoint *c,
                                        enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                                        struct tsr_region g, int64_t pad) {
    int64_t ld = g.c1 - g.c0 + pad, n = (g.r1 - g.r0) * ld;
    float *data = malloc((size_t)(n + 1) * sizeof *data);
    for (int64_t i = 0; i < n; i++) {
        int64_t col = g.c0 + i % ld;
        data[i] = col < g.c1 ? element(x, part, t, g.r0 + i / ld, col) : 1e30f;
    }
    expect_ok(tsr_checkpoint_write(c, part, t, g, data, ld));
    free(data);
}

static inline void write_as_rank(const struct fixture *x, struct tsr_checkpoint *c, struct layout l,
                                 int rank) {
    for (int k = 0; k < 3 * x->table.n; k++) {
        enum tsr_checkpoint_part part = (enum tsr_checkpoint_part)(k % 3);
        const struct tsr_tensor *t = &x->table.t[l.slices ? x->table.n - 1 - k / 3 : k / 3];
        if (!l.slices) {
            for (int v = rank * l.V / l.n_ranks; v < (rank + 1) * l.V / l.n_ranks; v++)
                write_part_of_region(x, c, part, t, tsr_tensor_piece(t, v, l.V), 0);
            continue;
        }
        int64_t lo = t->rows * rank / l.n_ranks, hi = t->rows * (rank + 1) / l.n_ranks;
        for (int64_t r = hi; r > lo; r -= r - lo < 3 ? r - lo : 3) {
            struct tsr_region g = {r - lo < 3 ? lo : r - 3, r, 0, t->cols};
            write_part_of_region(x, c, part, t, g, 2);
        }
    }
}

// All steps up to the digests; the caller commits or aborts handles[0]. Returns the digests.
static inline struct tsr_digest *write_up_to_digests(const struct fixture *x, struct layout l,
                                                     struct tsr_checkpoint **handles) {
    int64_t written = 0, n_digests = 0;
    for (int i = 0; i < l.n_ranks; i++)
        expect_ok(tsr_checkpoint_open(&handles[i], &x->opt));
    expect_ok(tsr_checkpoint_begin(handles[l.n_ranks - 1]));
    for (int i = 0; i < l.n_ranks; i++) {
        write_as_rank(x, handles[i], l, i);
        expect_ok(tsr_checkpoint_fsync(handles[i]));
        written += tsr_checkpoint_elems_written(handles[i]);
        n_digests += tsr_checkpoint_n_digests(handles[i], i, l.n_ranks);
    }
    assert_true(written == tsr_checkpoint_elems(handles[0]));
    struct tsr_digest *digests = malloc((size_t)n_digests * sizeof *digests), *d = digests;
    for (int i = 0; i < l.n_ranks; i++) {
        expect_ok(tsr_checkpoint_digest(handles[i], i, l.n_ranks, d));
        d += tsr_checkpoint_n_digests(handles[i], i, l.n_ranks);
    }
    return digests;
}

static inline void write_checkpoint(struct fixture *x, struct layout l, const char *source_dir,
                                    const char *tokenizer_dir) {
    struct tsr_checkpoint *handles[16];
    x->opt.nonce = tsr_checkpoint_nonce();
    x->state.step = x->opt.step;
    x->state.updates = x->opt.step;
    struct tsr_digest *digests = write_up_to_digests(x, l, handles);
    expect_ok(tsr_checkpoint_commit(handles[0], digests, l.n_ranks, &x->state, source_dir,
                                    tokenizer_dir));
    for (int i = 0; i < l.n_ranks; i++)
        tsr_checkpoint_close(handles[i]);
    free(digests);
}

// The checkpoint that write_checkpoint wrote, or a file in it.
static inline const char *in_checkpoint(const struct fixture *x, const char *name) {
    static char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
    expect_ok(tsr_checkpoint_path(dir, x->dir, x->opt.step));
    expect_ok(tsr_path_join(path, dir, name));
    return path;
}

#endif
