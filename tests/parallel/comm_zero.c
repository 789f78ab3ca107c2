// The exchange of gradients and weights over data-parallel ranks (dist/zero.c) in many buckets, on
// any transport: while one is under way the next is filled.
#include <stdlib.h>
#include <string.h>
#include "dist/zero.h"
#include "tests/parallel/comm_test.h"

static const char json[] = "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":12,\"n_head\":3,"
                           "\"n_positions\":9,\"vocab_size\":37,\"activation_function\":\"gelu\"}";

enum { BUCKET = 50 };

static int64_t n_elems(const struct tsr_param *p) {
    return p->rows * p->cols;
}

static float *gradient(struct tsr_net *net, struct tsr_param *p) {
    return tsr_net_grad(net, p, 0);
}

static float *weight(struct tsr_net *net, struct tsr_param *p) {
    (void)net;
    return (float *)p->w;
}

// Each rank has numbers of its own everywhere.
static void fill(struct fixture *f, struct tsr_net *net, int call,
                 float *(*at)(struct tsr_net *, struct tsr_param *)) {
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (at == weight && p->alias) // the same memory
            continue;
        float *x = malloc((size_t)n_elems(p) * sizeof *x);
        for (int64_t e = 0; e < n_elems(p); e++)
            x[e] = input(call + i, net->mesh.dp_rank, (size_t)e);
        CHECK_OK(f, f->ctx.ops->to_device(&f->ctx, at(net, p), x, (size_t)n_elems(p) * sizeof *x));
        CHECK_OK(f, f->ctx.ops->sync(&f->ctx));
        free(x);
    }
}

// What rank `owner`'s slices of a parameter hold must be `expected` of each element.
static void check_slices(struct fixture *f, struct tsr_net *net, struct tsr_param *p,
                         const float *dev, int owner, int call,
                         float (*expected)(int call, int n, size_t e)) {
    struct tsr_range slices[TSR_MAX_PIECES];
    int n = tsr_param_slices(net, p, owner, slices);
    size_t n_bytes = (size_t)n_elems(p) * sizeof *dev;
    float *x = malloc(n_bytes), *want = malloc(n_bytes);
    CHECK_OK(f, f->ctx.ops->to_host(&f->ctx, x, dev, n_bytes));
    CHECK_OK(f, f->ctx.ops->sync(&f->ctx));
    for (int k = 0; k < n; k++) {
        int64_t lo = slices[k].lo * p->cols, hi = slices[k].hi * p->cols;
        for (int64_t e = lo; e < hi; e++)
            want[e] = expected(call, owner, (size_t)e);
        check_bits(f, x + lo, want + lo, (size_t)(hi - lo), p->t->name);
    }
    free(x);
    free(want);
}

static int n_ranks;

static float sum_of_ranks(int call, int owner, size_t e) {
    (void)owner;
    return tree_of(call, n_ranks, e);
}

static void exchange(struct fixture *f, struct tsr_net *net, enum tsr_zero_kind kind) {
    CHECK_OK(f, tsr_zero_begin(net, kind));
    for (int i = net->n_params - 1; i >= 0; i--)
        CHECK_OK(f, tsr_zero_ready(net, &net->params[i]));
    CHECK_OK(f, tsr_zero_end(net));
}

void test_zero(struct fixture *f) {
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1, .seed = 1};
    struct tsr_model m;
    struct tsr_mesh mesh;
    struct tsr_net net;
    CHECK_OK(f, tsr_model_parse(&m, json, "test"));
    tsr_mesh_place(&mesh, 1, 1, f->c.world, f->c.rank);
    mesh.V = 4;
    mesh.W = 2 * f->c.world;
    n_ranks = f->c.world;
    CHECK_OK(f, tsr_net_open(&net, &f->ctx, &f->c, &mesh, &m, &opt, 9));
    size_t bucket_elems = net.bucket_elems;
    if (n_ranks > 1)
        net.bucket_elems = BUCKET;
    for (int twice = 0; twice < 2; twice++) {
        fill(f, &net, 500, gradient);
        exchange(f, &net, TSR_ZERO_GRADIENTS);
        for (int i = 0; i < net.n_params; i++)
            check_slices(f, &net, &net.params[i], gradient(&net, &net.params[i]), f->c.rank,
                         500 + i, sum_of_ranks);
        fill(f, &net, 600, weight);
        exchange(f, &net, TSR_ZERO_WEIGHTS);
        for (int i = 0; i < net.n_params; i++)
            for (int d = 0; d < n_ranks && !net.params[i].alias; d++)
                check_slices(f, &net, &net.params[i], weight(&net, &net.params[i]), d, 600 + i,
                             input);
    }
    net.bucket_elems = bucket_elems;
    tsr_net_close(&net);
    tsr_model_free(&m);
}
