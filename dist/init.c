// Fresh weights and the rotary table.
#include <math.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/net.h"

// A purpose-made stream per tensor: its place in the table is part of the model, not of a layout.
static struct tsr_rng_key init_key(const struct tsr_net *net, const struct tsr_tensor *t) {
    return tsr_rng_key(net->opt.seed, TSR_RNG_INIT, (uint32_t)(t - net->tensors.t), 0);
}

static int fill(struct tsr_net *net, struct tsr_param *p, float value) {
    size_t n = (size_t)(p->rows * p->cols), bytes = n * sizeof(float);
    float *host = malloc(bytes ? bytes : 1);
    if (!host)
        return tsr_fail(TSR_ENOMEM, "no memory to initialise %s", p->t->name);
    for (size_t i = 0; i < n; i++)
        host[i] = value;
    int rc = net->ctx->ops->to_device(net->ctx, p->w, host, bytes);
    if (rc == 0)
        rc = net->ctx->ops->sync(net->ctx);
    free(host);
    return rc;
}

// Vaswani et al. 2017, section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i/C)), PE(pos, 2i+1) = cos.
static int fill_sinusoid(struct tsr_net *net, struct tsr_param *p) {
    size_t bytes = (size_t)(p->rows * p->cols) * sizeof(float);
    float *host = malloc(bytes);
    if (!host)
        return tsr_fail(TSR_ENOMEM, "no memory to initialise %s", p->t->name);
    for (int64_t pos = 0; pos < p->rows; pos++)
        for (int64_t c = 0; c < p->cols; c++) {
            double angle = (double)pos * pow(10000.0, -(double)(c & ~1LL) / (double)p->cols);
            host[pos * p->cols + c] = (float)(c & 1 ? cos(angle) : sin(angle));
        }
    int rc = net->ctx->ops->to_device(net->ctx, p->w, host, bytes);
    if (rc == 0)
        rc = net->ctx->ops->sync(net->ctx);
    free(host);
    return rc;
}

int tsr_net_init(struct tsr_net *net) {
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (p->alias)
            continue;
        switch (p->t->init) {
        case TSR_INIT_ZERO:
            break; // slabs are born zero
        case TSR_INIT_ONE:
            TSR_TRY(fill(net, p, 1.0f));
            break;
        case TSR_INIT_SINUSOID:
            TSR_TRY(fill_sinusoid(net, p));
            break;
        case TSR_INIT_NORMAL:
            TSR_TRY(net->ctx->ops->init_normal(net->ctx, p->w, init_key(net, p->t),
                                               (float)p->t->init_std, p->held.r0, p->rows,
                                               p->held.c0, p->cols, p->t->cols));
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
    }
    free(freq);
    free(host);
    return rc;
}
