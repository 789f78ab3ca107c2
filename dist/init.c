// Fresh weights and the rotary table.
#include <math.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/net.h"

// A purpose-made stream per tensor: its place in the table is part of the model, not of a layout.
static struct tsr_rng_key init_key(const struct tsr_net *net, const struct tsr_tensor *t) {
    return tsr_rng_key(net->opt.seed, TSR_RNG_INIT, (uint32_t)(t - net->tensors.t), 0);
}

int tsr_param_put(struct tsr_net *net, struct tsr_param *p, const float *values, void *narrow) {
    const struct tsr_ops *ops = net->ctx->ops;
    const enum tsr_dtype dtype = net->ctx->dtype;
    const size_t n = (size_t)(p->rows * p->cols);
    const void *w = values;
    int64_t at = 0;
    for (int s = 0; p->master && s < p->n_slices; s++) {
        int64_t len = tsr_range_len(p->slices[s]) * p->cols;
        TSR_TRY(ops->to_device(net->ctx, p->master + at, values + p->slices[s].lo * p->cols,
                               (size_t)len * sizeof *values));
        at += len;
    }
    if (dtype != TSR_DT_F32) {
        tsr_dtype_from_f32(dtype, narrow, values, n);
        w = narrow;
    }
    TSR_TRY(ops->to_device(net->ctx, p->w, w, n * tsr_dtype_size(dtype)));
    return ops->sync(net->ctx);
}

// Values of a parameter on the host, and behind them the memory that tsr_param_put needs.
static int take_values(const struct tsr_net *net, const struct tsr_param *p, float **out) {
    size_t n = (size_t)(p->rows * p->cols);
    *out = malloc(n * (sizeof **out + tsr_dtype_size(net->ctx->dtype)) + 1);
    return *out ? 0 : tsr_fail(TSR_ENOMEM, "no memory to initialise %s", p->t->name);
}

static int put_values(struct tsr_net *net, struct tsr_param *p, float *values) {
    int rc = tsr_param_put(net, p, values, values + p->rows * p->cols);
    free(values);
    return rc;
}

// Slabs are born zero, but a checkpoint that turned out to be damaged may have been read into them.
static int fill_zero(struct tsr_net *net, struct tsr_param *p) {
    const struct tsr_ops *ops = net->ctx->ops;
    size_t n = (size_t)(p->rows * p->cols);
    if (p->master)
        TSR_TRY(ops->zero(net->ctx, p->master, (size_t)p->n_own * sizeof *p->master));
    return ops->zero(net->ctx, p->w, n * tsr_dtype_size(net->ctx->dtype));
}

static int fill(struct tsr_net *net, struct tsr_param *p, float value) {
    float *host;
    TSR_TRY(take_values(net, p, &host));
    for (int64_t i = 0; i < p->rows * p->cols; i++)
        host[i] = value;
    return put_values(net, p, host);
}

// Vaswani et al. 2017, section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i/C)), PE(pos, 2i+1) = cos.
static int fill_sinusoid(struct tsr_net *net, struct tsr_param *p) {
    float *host;
    TSR_TRY(take_values(net, p, &host));
    for (int64_t pos = 0; pos < p->rows; pos++)
        for (int64_t c = 0; c < p->cols; c++) {
            double angle = (double)pos * pow(10000.0, -(double)(c & ~1LL) / (double)p->cols);
            host[pos * p->cols + c] = (float)(c & 1 ? cos(angle) : sin(angle));
        }
    return put_values(net, p, host);
}

// The master has the same values before they are rounded.
static int fill_normal(struct tsr_net *net, struct tsr_param *p) {
    const struct tsr_ops *ops = net->ctx->ops;
    const struct tsr_region h = p->held;
    const struct tsr_rng_key key = init_key(net, p->t);
    const float std = (float)p->t->init_std;
    struct tsr_ctx wide = *net->ctx;
    int64_t at = 0;
    wide.dtype = TSR_DT_F32;
    for (int s = 0; p->master && s < p->n_slices; s++) {
        int64_t rows = tsr_range_len(p->slices[s]);
        TSR_TRY(ops->init_normal(&wide, p->master + at, key, std, h.r0 + p->slices[s].lo, rows,
                                 h.c0, p->cols, p->t->cols));
        at += rows * p->cols;
    }
    return ops->init_normal(net->ctx, p->w, key, std, h.r0, p->rows, h.c0, p->cols, p->t->cols);
}

int tsr_net_init(struct tsr_net *net) {
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (p->alias)
            continue;
        switch (p->t->init) {
        case TSR_INIT_ZERO:
            TSR_TRY(fill_zero(net, p));
            break;
        case TSR_INIT_ONE:
            TSR_TRY(fill(net, p, 1.0f));
            break;
        case TSR_INIT_SINUSOID:
            TSR_TRY(fill_sinusoid(net, p));
            break;
        case TSR_INIT_NORMAL:
            TSR_TRY(fill_normal(net, p));
            break;
        }
    }
    return net->ctx->ops->sync(net->ctx);
}

int tsr_net_rope(struct tsr_net *net, int64_t positions) {
    if (net->m->position != TSR_POS_ROTARY)
        return 0;
    int64_t half = net->m->head_dim / 2;
    size_t bytes = (size_t)(positions * net->m->head_dim) * sizeof(float);
    double *freq = malloc(sizeof(double) * (size_t)(half ? half : 1));
    float *host = malloc(bytes ? bytes : 1);
    int rc = 0;
    if (!freq || !host) {
        rc = tsr_fail(TSR_ENOMEM, "no memory for the rotary table");
    } else {
        tsr_rope_frequencies(net->m, freq);
        for (int64_t p = 0; p < positions && !net->comm->pretend; p++)
            for (int64_t d = 0; d < half; d++) {
                // HF multiplies in fp32: position times frequency is rounded before cos and sin.
                float angle = (float)p * (float)freq[d];
                host[(p * half + d) * 2] = (float)cos((double)angle);
                host[(p * half + d) * 2 + 1] = (float)sin((double)angle);
            }
        net->rope_positions = positions;
        void *rope = NULL;
        rc = net->ctx->ops->alloc(net->ctx, bytes, &rope);
        net->rope = rope;
        if (rc == 0)
            rc = net->ctx->ops->to_device(net->ctx, net->rope, host, bytes);
        if (rc == 0)
            rc = net->ctx->ops->sync(net->ctx);
    }
    free(freq);
    free(host);
    return rc;
}
