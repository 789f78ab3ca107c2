#include "core/mix.h"
#include "core/error.h"

#include <math.h>

enum { MAX_PERIOD = 8192, MIN_PICKS = 64 };

// The smallest period that divides the weights evenly, or `max` when none up to there does.
static int64_t period(const double *w, int n, double sum, int64_t max) {
    for (int64_t P = n; P < max; P++) {
        int s = 0;
        for (; s < n; s++) {
            double picks = w[s] / sum * (double)P;
            if (rint(picks) < 1 || fabs(picks - rint(picks)) > 1e-9 * (double)P)
                break;
        }
        if (s == n)
            return P;
    }
    return max;
}

// Whole picks whose sum is P: everyone's share rounded down (but one at least), then one more
// for whoever is furthest below its share, or one less for whoever is furthest above.
static void deal(const double *w, int n, double sum, int64_t P, int64_t *c) {
    int64_t left = P;
    for (int s = 0; s < n; s++) {
        c[s] = (int64_t)floor(w[s] / sum * (double)P + 1e-6);
        c[s] = c[s] < 1 ? 1 : c[s];
        left -= c[s];
    }
    for (; left != 0; left += left > 0 ? -1 : 1) {
        int best = -1;
        double most = 0;
        for (int s = 0; s < n; s++) {
            double lack = w[s] / sum * (double)P - (double)c[s];
            lack = left > 0 ? lack : -lack;
            if ((left > 0 || c[s] > 1) && (best < 0 || lack > most))
                best = s, most = lack;
        }
        c[best] += left > 0 ? 1 : -1;
    }
}

// Each slot goes to the source that lags most behind its share, so that every stretch of the
// period, not only its whole, is near the weights (Tijdeman, "The chairman assignment problem",
// 1980). A source is picked only while it lags, hence never more than c times.
static void lay_out(struct tsr_mix *m, int64_t *picked) {
    for (int64_t i = 0; i < m->P; i++) {
        int best = 0;
        for (int s = 1; s < m->n; s++)
            if ((i + 1) * m->c[s] - m->P * picked[s] > (i + 1) * m->c[best] - m->P * picked[best])
                best = s;
        m->pick[i] = best;
        m->rank[i] = (int32_t)picked[best]++;
    }
}

int tsr_mix_init(struct tsr_mix *m, const double *weights, int n) {
    double largest = 0, sum = 0;
    int64_t max = n > MAX_PERIOD / MIN_PICKS ? (int64_t)n * MIN_PICKS : MAX_PERIOD;
    *m = (struct tsr_mix){.n = n};
    double *w = calloc((size_t)n, sizeof *w); // scaled, so that their sum is finite
    int64_t *picked = calloc((size_t)n, sizeof *picked);
    m->c = calloc((size_t)n, sizeof *m->c);
    m->pick = calloc((size_t)max, sizeof *m->pick);
    m->rank = calloc((size_t)max, sizeof *m->rank);
    if (!w || !picked || !m->c || !m->pick || !m->rank) {
        free(w);
        free(picked);
        tsr_mix_free(m);
        return tsr_fail(TSR_ENOMEM, "out of memory: a mix of %d sources", n);
    }
    for (int s = 0; s < n; s++)
        largest = fmax(largest, weights[s]);
    for (int s = 0; s < n; s++)
        sum += w[s] = weights[s] / largest;
    m->P = period(w, n, sum, max);
    deal(w, n, sum, m->P, m->c);
    lay_out(m, picked);
    free(w);
    free(picked);
    return 0;
}

void tsr_mix_free(struct tsr_mix *m) {
    free(m->c);
    free(m->pick);
    free(m->rank);
    *m = (struct tsr_mix){0};
}

struct tsr_pick tsr_mix_at(const struct tsr_mix *m, uint64_t g) {
    uint64_t turn = g / (uint64_t)m->P, slot = g % (uint64_t)m->P;
    return (struct tsr_pick){m->pick[slot],
                             turn * (uint64_t)m->c[m->pick[slot]] + (uint64_t)m->rank[slot]};
}
