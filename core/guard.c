#include "core/guard.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Of n >= 1 numbers; of an even number of them the mean of the middle two.
static double median(const float *v, int n) {
    float sorted[TSR_GUARD_WINDOW];
    memcpy(sorted, v, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return n % 2 ? (double)sorted[n / 2] : ((double)sorted[n / 2 - 1] + (double)sorted[n / 2]) / 2;
}

// 0 in a run that wasn't read from a file: nothing is remembered.
static int window_of(const struct tsr_run *r) {
    TSR_ASSERT(r->train.spike.window >= 0 && r->train.spike.window <= TSR_GUARD_WINDOW);
    return (int)r->train.spike.window;
}

// Finite in fp32: a larger number would stand in no file.
static float kept(double v) {
    return v > (double)FLT_MAX ? FLT_MAX : (float)v;
}

static bool is_spike(struct tsr_judgement *j, const float *history, int n, double factor,
                     double value) {
    if (factor == 0.0)
        return false;
    double m = median(history, n);
    if (m <= 0.0 || (double)kept(value) <= factor * m)
        return false;
    j->factor = factor;
    j->median = m;
    return true;
}

static enum tsr_step_kind kind_of(const struct tsr_guard *g, const struct tsr_run *r,
                                  struct tsr_judgement *j) {
    int n = window_of(r), first = g->n - n; // the window may have shrunk since
    if (!isfinite(j->loss) || !isfinite(j->grad_norm))
        return TSR_STEP_NOT_FINITE;
    if (n == 0 || first < 0)
        return TSR_STEP_GOOD;
    if (is_spike(j, g->grad_norm + first, n, r->train.spike.grad_norm, j->grad_norm))
        return TSR_STEP_NORM_SPIKE;
    if (is_spike(j, g->loss + first, n, r->train.spike.loss, j->loss))
        return TSR_STEP_LOSS_SPIKE;
    return TSR_STEP_GOOD;
}

struct tsr_judgement tsr_guard_judge(const struct tsr_guard *g, const struct tsr_run *r,
                                     double loss, double grad_norm) {
    struct tsr_judgement j = {
        .loss = loss, .grad_norm = grad_norm, .window = r->train.spike.window};
    j.kind = kind_of(g, r, &j);
    if (j.kind == TSR_STEP_GOOD)
        return j;
    j.action = (enum tsr_on_bad)(j.kind == TSR_STEP_NOT_FINITE ? r->train.on_nonfinite
                                                               : r->train.spike.action);
    j.in_a_row = j.action == TSR_ON_BAD_ROLLBACK ? g->retries : g->skips;
    j.worn_out = j.action != TSR_ON_BAD_STOP && j.in_a_row >= r->train.max_skips;
    return j;
}

static void remember(struct tsr_guard *g, int window, float loss, float grad_norm) {
    if (window == 0)
        return;
    int drop = g->n >= window ? g->n - window + 1 : 0;
    g->n -= drop;
    memmove(g->loss, g->loss + drop, (size_t)g->n * sizeof *g->loss);
    memmove(g->grad_norm, g->grad_norm + drop, (size_t)g->n * sizeof *g->grad_norm);
    g->loss[g->n] = loss;
    g->grad_norm[g->n++] = grad_norm;
}

void tsr_guard_count(struct tsr_guard *g, const struct tsr_run *r, const struct tsr_judgement *j) {
    if (j->kind != TSR_STEP_GOOD) {
        g->skips++;
        return;
    }
    g->skips = 0;
    remember(g, window_of(r), kept(j->loss), kept(j->grad_norm));
}

bool tsr_guard_may_roll_back(const struct tsr_run *r) {
    bool spikes = r->train.spike.grad_norm > 0.0 || r->train.spike.loss > 0.0;
    return r->train.on_nonfinite == TSR_ON_BAD_ROLLBACK ||
           (spikes && r->train.spike.action == TSR_ON_BAD_ROLLBACK);
}

// A NaN's sign, which differs from layout to layout, says nothing.
static double shown(double v) {
    return isnan(v) ? (double)NAN : v;
}

void tsr_guard_describe(char out[static TSR_GUARD_TEXT], const struct tsr_judgement *j,
                        int64_t step) {
    int n = snprintf(out, TSR_GUARD_TEXT, "step %lld: loss %.6g, gradient norm %.6g",
                     (long long)step, shown(j->loss), shown(j->grad_norm));
    if (j->kind == TSR_STEP_NOT_FINITE)
        snprintf(out + n, TSR_GUARD_TEXT - (size_t)n, ": not finite");
    else if (j->kind != TSR_STEP_GOOD)
        snprintf(out + n, TSR_GUARD_TEXT - (size_t)n,
                 ": the %s is more than %g x %.6g, the median of the last %lld good steps",
                 j->kind == TSR_STEP_NORM_SPIKE ? "norm" : "loss", j->factor, j->median,
                 (long long)j->window);
}
