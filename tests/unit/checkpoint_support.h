// Writes small checkpoints as `n_ranks` simulated ranks would, for the tests of checkpoints.
#ifndef TSR_TESTS_CHECKPOINT_SUPPORT_H
#define TSR_TESTS_CHECKPOINT_SUPPORT_H

#include "tests/unit/files_support.h"

#include "core/checkpoint.h"
#include "core/checkpoint_publish.h"
#include "core/tensor.h"

struct fixture {
    char dir[TSR_PATH_MAX]; // run directory
    struct tsr_model model;
    struct tsr_tensor_table table;
    struct tsr_checkpoint_opt opt;
    struct tsr_state state;
    bool shared; // ranks read each other's memory and write shares
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

// Values of a region in rows of `pad` more floats than it has columns; the caller frees them.
static inline float *region_values(const struct fixture *x, enum tsr_checkpoint_part part,
                                   const struct tsr_tensor *t, struct tsr_region g, int64_t pad) {
    int64_t ld = g.c1 - g.c0 + pad, n = (g.r1 - g.r0) * ld;
    float *data = malloc((size_t)(n + 1) * sizeof *data);
    for (int64_t i = 0; i < n; i++) {
        int64_t col = g.c0 + i % ld;
        data[i] = col < g.c1 ? element(x, part, t, g.r0 + i / ld, col) : 1e30f;
    }
    return data;
}

typedef void (*region_fn)(void *arg, enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                          struct tsr_region g, int64_t pad);

// The regions of one rank.
static inline void each_region(const struct fixture *x, struct layout l, int rank, region_fn fn,
                               void *arg) {
    for (int k = 0; k < 3 * x->table.n; k++) {
        enum tsr_checkpoint_part part = (enum tsr_checkpoint_part)(k % 3);
        const struct tsr_tensor *t = &x->table.t[l.slices ? x->table.n - 1 - k / 3 : k / 3];
        if (!l.slices) {
            for (int v = rank * l.V / l.n_ranks; v < (rank + 1) * l.V / l.n_ranks; v++)
                fn(arg, part, t, tsr_tensor_piece(t, v, l.V), 0);
            continue;
        }
        int64_t lo = t->rows * rank / l.n_ranks, hi = t->rows * (rank + 1) / l.n_ranks;
        for (int64_t r = hi; r > lo; r -= r - lo < 3 ? r - lo : 3)
            fn(arg, part, t, (struct tsr_region){r - lo < 3 ? lo : r - 3, r, 0, t->cols}, 2);
    }
}

struct writing {
    const struct fixture *x;
    struct tsr_checkpoint *c;
    struct tsr_checkpoint_source *sources; // with x->shared
    int n, cap;
};

static inline void write_one(void *arg, enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                             struct tsr_region g, int64_t pad) {
    struct writing *w = arg;
    float *data = region_values(w->x, part, t, g, pad);
    expect_ok(tsr_checkpoint_write(w->c, part, t, g, data, g.c1 - g.c0 + pad));
    free(data);
}

static inline void collect_one(void *arg, enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                               struct tsr_region g, int64_t pad) {
    struct writing *w = arg;
    if (w->n == w->cap) {
        w->cap = 2 * w->cap + 64;
        w->sources = realloc(w->sources, (size_t)w->cap * sizeof *w->sources);
    }
    w->sources[w->n++] = (struct tsr_checkpoint_source){
        part, t, g, region_values(w->x, part, t, g, pad), g.c1 - g.c0 + pad};
}

// One rank of several writes every n-th share.
struct dealt {
    int next, step;
};

static inline int deal(void *arg) {
    struct dealt *d = arg;
    int share = d->next;
    d->next += d->step;
    return share;
}

static inline void write_as_rank(const struct fixture *x, struct tsr_checkpoint *c, struct layout l,
                                 int rank) {
    struct writing w = {.x = x, .c = c};
    for (int i = 0; x->shared && i < l.n_ranks; i++)
        each_region(x, l, i, collect_one, &w);
    if (x->shared)
        expect_ok(tsr_checkpoint_write_shares(c, w.sources, w.n, 2 * l.n_ranks, deal,
                                              &(struct dealt){rank, l.n_ranks}));
    else
        each_region(x, l, rank, write_one, &w);
    for (int i = 0; i < w.n; i++)
        free((void *)(uintptr_t)w.sources[i].data);
    free(w.sources);
}

// What a coordinator does with plan and votes: here, in one process.
struct gathered {
    struct tsr_save_plan plan;
    struct tsr_publish publish;
    uint64_t n_ranges, n_read_back, elements;
    struct tsr_digest *digests;
    bool *have;
};

static inline void gather(struct gathered *g, struct tsr_save_vote *v) {
    g->elements += v->elements;
    for (int i = 0; i < v->n_ranges; i++)
        for (int k = 0; k < v->ranges[i].n; k++) {
            uint64_t r = v->ranges[i].first + (uint64_t)k;
            assert_true(r < g->n_ranges);
            assert_false(g->have[r]);
            g->have[r] = true;
            g->digests[r] = v->ranges[i].digests[k];
        }
    tsr_save_vote_free(v);
}

static inline void open_gathered(struct gathered *g, const struct fixture *x,
                                 const struct tsr_checkpoint *c) {
    *g = (struct gathered){0};
    expect_ok(tsr_checkpoint_plan(c, &g->plan));
    g->publish = (struct tsr_publish){.run_dir = x->dir,
                                      .step = x->opt.step,
                                      .temporary = g->plan.temporary,
                                      .range_bytes = g->plan.range_bytes,
                                      .files = g->plan.files,
                                      .n_files = g->plan.n_files};
    expect_ok(tsr_publish_n_ranges(&g->publish, &g->n_ranges));
    g->digests = calloc(g->n_ranges + 1, sizeof *g->digests);
    g->have = calloc(g->n_ranges + 1, sizeof *g->have);
    g->publish.digests = g->digests;
}

static inline void free_gathered(struct gathered *g) {
    tsr_save_plan_free(&g->plan);
    free(g->digests);
    free(g->have);
}

// Ranges that no vote had are dealt out.
static inline void read_back(struct gathered *g, struct tsr_checkpoint **handles, int n_ranks) {
    for (uint64_t r = 0, n = 1; r < g->n_ranges; r += n, n = 1) {
        if (g->have[r])
            continue;
        while (r + n < g->n_ranges && !g->have[r + n])
            n++;
        struct tsr_save_vote v;
        struct tsr_span span = {r, n};
        expect_ok(tsr_checkpoint_digest(handles[r % (uint64_t)n_ranks], &span, 1, &v));
        gather(g, &v);
        g->n_read_back += n;
    }
}

static inline int publish(const struct tsr_publish *p) {
    TSR_TRY(tsr_publish_write_manifest(p));
    TSR_TRY(tsr_publish_sync_manifest(p));
    TSR_TRY(tsr_publish_sync_dirs(p));
    TSR_TRY(tsr_publish_rename(p));
    return tsr_publish_sync_parent(p);
}

// All steps up to the digests; the caller publishes or aborts.
static inline void write_up_to_digests(struct fixture *x, struct layout l, const char *source_dir,
                                       const char *tokenizer_dir, struct tsr_checkpoint **handles,
                                       struct gathered *g) {
    x->opt.attempt++;
    x->state.step = x->opt.step;
    x->state.updates = x->opt.step;
    for (int i = 0; i < l.n_ranks; i++)
        expect_ok(tsr_checkpoint_open(&handles[i], &x->opt));
    int first = l.n_ranks - 1;
    expect_ok(tsr_checkpoint_begin(handles[first], &x->state, source_dir, tokenizer_dir));
    open_gathered(g, x, handles[first]);
    for (int i = 0; i < l.n_ranks; i++) {
        struct tsr_save_vote v;
        write_as_rank(x, handles[i], l, i);
        expect_ok(tsr_checkpoint_flush(handles[i], &v));
        gather(g, &v);
    }
    assert_true(g->elements == g->plan.elements);
    read_back(g, handles, l.n_ranks);
}

static inline void write_checkpoint(struct fixture *x, struct layout l, const char *source_dir,
                                    const char *tokenizer_dir) {
    struct tsr_checkpoint *handles[16];
    struct gathered g;
    write_up_to_digests(x, l, source_dir, tokenizer_dir, handles, &g);
    expect_ok(publish(&g.publish));
    for (int i = 0; i < l.n_ranks; i++)
        tsr_checkpoint_close(handles[i]);
    free_gathered(&g);
}

// The checkpoint that write_checkpoint wrote, or a file in it.
static inline const char *in_checkpoint(const struct fixture *x, const char *name) {
    static char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
    expect_ok(tsr_checkpoint_path(dir, x->dir, x->opt.step));
    expect_ok(tsr_path_join(path, dir, name));
    return path;
}

#endif
