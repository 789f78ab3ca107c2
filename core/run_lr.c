#include "core/run.h"

#include <math.h>

// Step s of W warm-up steps uses lr s / W. Then cosine: Loshchilov and Hutter 2017, equation 5;
// wsd (warm-up, stable, decay): Hu et al. 2024, MiniCPM, section 4.
double tsr_run_lr(const struct tsr_run *r, int64_t s) {
    double lr = r->train.lr, min_lr = r->train.min_lr;
    int64_t steps = r->train.steps, warmup = r->train.warmup;
    if (s > steps)
        s = steps;
    if (s <= warmup)
        return lr * (double)s / (double)warmup;
    double left = (double)(steps - s), all = (double)(steps - warmup);
    switch (r->train.schedule) {
    case TSR_LR_COSINE:
        return min_lr + (lr - min_lr) * (1.0 + cos(M_PI * (double)(s - warmup) / all)) / 2.0;
    case TSR_LR_LINEAR:
        return min_lr + (lr - min_lr) * left / all;
    case TSR_LR_WSD: {
        int64_t decay = r->train.decay >= 0 ? r->train.decay : steps / 5;
        if (decay > steps - warmup)
            decay = steps - warmup;
        return s <= steps - decay ? lr : min_lr + (lr - min_lr) * left / (double)decay;
    }
    default:
        return lr;
    }
}
