// The sampler against a plain one that sorts, adds doubles and calls exp.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include "core/philox.h"
#include "core/sampler.h"
#include "core/sampler_math.h"

enum { MOST = 5000 };

struct candidate {
    float logit;
    int32_t id;
};

static uint64_t state = 7;
static double unit(void) { // [0, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}

static int by_logit(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static double uniform(uint64_t seed, uint64_t position) {
    struct tsr_rng_key key = tsr_rng_key(seed, TSR_RNG_SAMPLE, 0, 0);
    struct tsr_u32x4 r = tsr_philox(key, (uint32_t)position, (uint32_t)(position >> 32), 0, 0);
    return (double)(((uint64_t)r.v[0] << 21) ^ (r.v[1] >> 11)) * 0x1p-53;
}

// The token, or -1 when a rounding could decide between two.
static int32_t plain(const struct tsr_sampling *s, const float *logits, int n, uint64_t position) {
    static struct candidate c[MOST];
    static double weight[MOST];
    const double near = 1e-5;
    double all = 0, sum = 0;
    for (int i = 0; i < n; i++)
        c[i] = (struct candidate){logits[i], i};
    qsort(c, (size_t)n, sizeof *c, by_logit);
    int k = s->top_k > 0 && s->top_k < n ? (int)s->top_k : n, kept = 0;
    for (int i = 0; i < n; i++) {
        weight[i] = exp(((double)c[i].logit - (double)c[0].logit) / s->temperature);
        all += i < k ? weight[i] : 0.0;
    }
    for (; kept < k; kept++) {
        if (kept > 0 && s->top_p < 1.0 && fabs(sum - s->top_p * all) < near * all)
            return -1;
        if (kept > 0 && fabs(weight[kept] - s->min_p) < near)
            return -1;
        if (kept > 0 && (sum >= s->top_p * all || weight[kept] < s->min_p))
            break;
        sum += weight[kept];
    }
    double at = uniform(s->seed, position) * sum, before = 0;
    for (int i = 0; i < kept; i++) {
        before += weight[i];
        if (fabs(before - at) < near * sum)
            return -1;
        if (at < before)
            return c[i].id;
    }
    return -1;
}

static void fill(float *logits, int n, double scale, bool coarse) {
    for (int i = 0; i < n; i++) {
        logits[i] = (float)(scale * (unit() + unit() + unit() - 1.5));
        if (coarse) // many equal ones, zeros of both signs among them
            logits[i] = rintf(4.0f * logits[i]) / 4.0f;
    }
}

static void test_plain(void **unused) {
    (void)unused;
    static float logits[MOST];
    const double temperatures[] = {0.05, 0.7, 1.0, 3.0}, top_ps[] = {1.0, 0.9, 0.3, 0.0};
    const double min_ps[] = {0.0, 0.1, 1.0};
    const int64_t top_ks[] = {0, 1, 5, 40, 100000};
    int same = 0, unclear = 0;
    for (int trial = 0; trial < 4000; trial++) {
        int n = trial % 50 == 0 ? MOST : 1 + (int)(unit() * 300);
        fill(logits, n, trial % 3 == 0 ? 30.0 : 5.0, trial % 2 == 1);
        struct tsr_sampling s = {.temperature = temperatures[trial % 4],
                                 .top_p = top_ps[trial / 4 % 4],
                                 .min_p = min_ps[trial / 16 % 3],
                                 .top_k = top_ks[trial / 48 % 5],
                                 .seed = (uint64_t)trial << 29};
        uint64_t position = trial % 7 == 0 ? (uint64_t)trial << 33 : (uint64_t)trial;
        int32_t want = plain(&s, logits, n, position), found = tsr_sample(&s, logits, n, position);
        assert_in_range(found, 0, n - 1);
        if (want < 0)
            unclear++;
        else if (want != found)
            fail_msg("trial %d: found token %d, expected %d", trial, found, want);
        else
            same++;
    }
    assert_true(same > 3000);
    assert_true(unclear < 1000);
}

// Frequencies of many draws: within five standard deviations.
static void test_frequencies(void **unused) {
    (void)unused;
    enum { N = 6, DRAWS = 40000 };
    const float logits[N] = {0.5f, -1.0f, 2.0f, 0.5f, -3.0f, 1.0f};
    const struct tsr_sampling s = {.temperature = 0.8, .top_p = 1.0, .seed = 3};
    double weight[N], sum = 0;
    int count[N] = {0};
    for (int i = 0; i < N; i++)
        sum += weight[i] = exp((double)logits[i] / s.temperature);
    for (uint64_t i = 0; i < DRAWS; i++)
        count[tsr_sample(&s, logits, N, i)]++;
    for (int i = 0; i < N; i++) {
        double p = weight[i] / sum, deviation = sqrt(p * (1 - p) * DRAWS);
        assert_true(fabs(count[i] - p * DRAWS) < 5 * deviation);
    }
}

static void test_greedy(void **unused) {
    (void)unused;
    const struct tsr_sampling s = {.temperature = 0.0, .top_p = 1.0};
    assert_int_equal(tsr_sample(&s, (const float[]){3.0f}, 1, 0), 0);
    assert_int_equal(tsr_sample(&s, (const float[]){-1.0f, 2.0f, 2.0f}, 3, 0), 1);
    assert_int_equal(tsr_sample(&s, (const float[]){-0.0f, 0.0f}, 2, 0), 0);
    assert_int_equal(tsr_sample(&s, (const float[]){-5.0f, -4.0f, -INFINITY}, 3, 0), 1);
    assert_int_equal(tsr_sample(&s, (const float[]){NAN, -INFINITY, -INFINITY}, 3, 0), 1);
}

// Logits that are no numbers, or infinite, give some token that could be meant.
static void test_odd_logits(void **unused) {
    (void)unused;
    struct tsr_sampling s = {.temperature = 1.0, .top_p = 0.9, .min_p = 0.01, .top_k = 2};
    const float masked[] = {-INFINITY, 1.0f, -INFINITY, 1.5f};
    const float nothing[] = {NAN, NAN}, some[] = {NAN, 0.0f, NAN}, most[] = {1.0f, INFINITY};
    for (uint64_t i = 0; i < 200; i++) {
        assert_true(tsr_sample(&s, masked, 4, i) % 2 == 1);
        assert_int_equal(tsr_sample(&s, nothing, 2, i), 0);
        assert_int_equal(tsr_sample(&s, some, 3, i), 1);
        assert_int_equal(tsr_sample(&s, most, 2, i), 1);
    }
    const float far[] = {-3e38f, 3e38f, -3e38f};
    for (s.temperature = 1e-300; s.temperature < 1e300; s.temperature *= 1e100)
        assert_int_equal(tsr_sample(&s, far, 3, 1), 1);
}

// Weights never rise as logits fall, and are e^x to a few parts in 10^7.
static void test_weights(void **unused) {
    (void)unused;
    uint64_t last = TSR_WEIGHT_ONE;
    for (float x = 0.0f; x > -30.0f; x -= 0.00037f) {
        uint64_t w = tsr_weight_of(x, 0.0f, 1.0f);
        double want = exp((double)x) * (double)TSR_WEIGHT_ONE;
        assert_true(w <= last + (last >> 22));
        assert_true(fabs((double)w - want) <= 5e-7 * want + 1.0);
        last = w;
    }
    assert_true(last == 0);
    assert_true(tsr_share_of(10, 0.25) == 3 && tsr_share_of(10, 0.0) == 1);
    assert_true(tsr_share_of(10, 1.0) == 10 && tsr_share_of(4, 0.5) == 2);
    assert_true(tsr_least_weight(1.0) == TSR_WEIGHT_ONE && tsr_least_weight(0.0) == 1);
}

static void test_draws(void **unused) {
    (void)unused;
    for (int i = 0; i < 20000; i++) {
        uint64_t total = (uint64_t)(unit() * 0x1p62) >> (i % 62);
        uint32_t r0 = (uint32_t)(unit() * 0x1p32), r1 = (uint32_t)(unit() * 0x1p32);
        uint64_t u = ((uint64_t)r0 << 21) ^ (r1 >> 11);
        uint64_t want = (uint64_t)((unsigned __int128)u * total >> 53);
        assert_true(tsr_draw_below(total, r0, r1) == want);
    }
    assert_true(tsr_draw_below(1, ~0u, ~0u) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),   cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_greedy),  cmocka_unit_test(test_odd_logits),
        cmocka_unit_test(test_weights), cmocka_unit_test(test_draws),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
