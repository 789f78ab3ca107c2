// Cross-entropy over a vocabulary that several ranks share, in three steps around the caller's
// two reductions (max; sums and target logits). The logits' memory becomes e^(l - max) and then
// the gradient: nothing of (tokens x vocabulary) is held twice.
//   loss = log(sum_j e^(l_j - max)) - (l_target - max)
//   dl_j = (e^(l_j - max) / sum - [j = target]) * scale
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/tree.h"
#include "kernels/cpu/isa/vmath.h"

struct max_job {
    struct tsr_split split; // of rows
    float *max;             // (N)
    const float *logits;    // (N, V)
    int v;
};

struct xent_job {
    struct tsr_split split;  // of rows
    float *logits;           // (N, V)
    const float *max;        // (N)
    float *sums;             // (2, N): sums, then target logits
    float *loss;             // (N)
    const float *sum_target; // what `sums` became when all ranks were joined
    const int32_t *targets;  // (N), negative: masked
    const int *bounds;       // (n_pieces + 1)
    int n_pieces;
    float scale;
    bool grad;
    int row0, n, v;
};

// The target's column here, or -1.
static int64_t column(const struct xent_job *q, int64_t i) {
    int64_t j = (int64_t)q->targets[i] - q->row0;
    return q->targets[i] >= 0 && j >= 0 && j < q->v ? j : -1;
}

static void max_part(void *arg, int part, int thread) {
    (void)thread;
    const struct max_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++) {
        const float *x = q->logits + i * q->v;
        v16 m[4];
        for (int k = 0; k < 4; k++)
            m[k] = v16_set1(-INFINITY);
        int j = 0;
        for (; j + 64 <= q->v; j += 64)
            for (int k = 0; k < 4; k++)
                m[k] = v16_max(m[k], v16_loadu(x + j + 16 * k));
        for (; j < q->v; j += 16)
            m[0] = v16_max(m[0], v16_load_tail(x + j, q->v - j, -INFINITY));
        q->max[i] = v16_hmax(v16_max(v16_max(m[0], m[1]), v16_max(m[2], m[3])));
    }
}

// x = e^(x - max) on n columns; their sum.
static float exp_span(float *x, float max, int n) {
    v16 m = v16_set1(max), s = v16_zero();
    int j = 0;
    for (; j + 64 <= n; j += 64) { // four independent exponentials hide the latency
        v16 e[4];
        for (int k = 0; k < 4; k++)
            e[k] = v16_exp(v16_sub(v16_loadu(x + j + 16 * k), m));
        for (int k = 0; k < 4; k++) {
            v16_storeu(x + j + 16 * k, e[k]);
            s = v16_add(s, e[k]);
        }
    }
    for (; j < n; j += 16) {
        v16 e = v16_exp(v16_sub(v16_load_tail(x + j, n - j, -INFINITY), m));
        v16_store_tail(x + j, n - j, e);
        s = v16_add(s, e); // e^-inf = +0 beyond the tail
    }
    return v16_hsum(s);
}

static void exp_part(void *arg, int part, int thread) {
    (void)thread;
    const struct xent_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++) {
        float *x = q->logits + i * q->v;
        int64_t j = column(q, i);
        q->sums[q->n + i] = j >= 0 ? x[j] - q->max[i] : 0.0f;
        struct tsr_tree tree = {0};
        for (int p = 0; p < q->n_pieces; p++) {
            int lo = q->bounds[p], hi = q->bounds[p + 1];
            tsr_tree_leaf(&tree, exp_span(x + lo, q->max[i], hi - lo));
        }
        q->sums[i] = tsr_tree_root(&tree);
    }
}

static float log1(float x) {
    float y[16];
    v16_storeu(y, v16_log(v16_set1(x)));
    return y[0];
}

// The gradient of one row in place of its exponentials.
static void grad_row(const struct xent_job *q, int64_t i) {
    float *x = q->logits + i * q->v;
    if (q->targets[i] < 0) {
        memset(x, 0, (size_t)q->v * sizeof *x);
        return;
    }
    float inverse = 1.0f / q->sum_target[i];
    int64_t at = column(q, i);
    float target = at >= 0 ? (x[at] * inverse - 1.0f) * q->scale : 0.0f;
    v16 r = v16_set1(inverse), scale = v16_set1(q->scale);
    for (int j = 0; j < q->v; j += 16) {
        v16 p = v16_mul(v16_load_tail(x + j, q->v - j, 0.0f), r);
        v16_store_tail(x + j, q->v - j, v16_mul(p, scale));
    }
    if (at >= 0)
        x[at] = target;
}

static void loss_part(void *arg, int part, int thread) {
    (void)thread;
    const struct xent_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++) {
        q->loss[i] = q->targets[i] < 0 ? 0.0f : log1(q->sum_target[i]) - q->sum_target[q->n + i];
        if (q->grad)
            grad_row(q, i);
    }
}

int TSR_FN(tsr_xent_max)(struct tsr_ctx *ctx, float *max, const tsr_elem *logits, int n, int v) {
    struct max_job q = {tsr_split_of(ctx, n, v), max, logits, v};
    tsr_pool_run(ctx->stream, q.split.n_parts, max_part, &q);
    return 0;
}

int TSR_FN(tsr_xent_exp)(struct tsr_ctx *ctx, tsr_elem *logits, float *sum_target, const float *max,
                         const int32_t *targets, const int *bounds, int n_pieces, int row0, int n,
                         int v) {
    struct xent_job q = {.split = tsr_split_of(ctx, n, (int64_t)v * 2),
                         .logits = logits,
                         .sums = sum_target,
                         .max = max,
                         .targets = targets,
                         .bounds = bounds,
                         .n_pieces = n_pieces,
                         .row0 = row0,
                         .n = n,
                         .v = v};
    tsr_pool_run(ctx->stream, q.split.n_parts, exp_part, &q);
    return 0;
}

int TSR_FN(tsr_xent_loss)(struct tsr_ctx *ctx, float *loss, tsr_elem *logits,
                          const float *sum_target, const int32_t *targets, float scale, bool grad,
                          int row0, int n, int v) {
    struct xent_job q = {.split = tsr_split_of(ctx, n, grad ? v : 16),
                         .loss = loss,
                         .logits = logits,
                         .sum_target = sum_target,
                         .targets = targets,
                         .scale = scale,
                         .grad = grad,
                         .row0 = row0,
                         .n = n,
                         .v = v};
    tsr_pool_run(ctx->stream, q.split.n_parts, loss_part, &q);
    return 0;
}
