// BPE over characters, with the mark of a space among them, against the textbook: cutting texts at
// spaces never changes an id.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "core/bpe.h"
#include "core/error.h"

enum { N_LETTERS = 4, N_RULES = 50, MOST = 160 };
static const char *const letters[N_LETTERS] = {"a", "b", "\xC3\xA9", "\xE2\x96\x81"};
static const char *const strangers[] = {"?", "\xED\x95\x9C"};

struct rule {
    int32_t a, b, made;
};

// ids[0..n) by the textbook: join the leftmost pair of lowest rank until there is none.
static size_t naive(const struct rule *rule, size_t n_rules, int32_t *ids, size_t n) {
    for (;;) {
        size_t best = n_rules, at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t r = 0; r < best; r++)
                if (rule[r].a == ids[i] && rule[r].b == ids[i + 1]) {
                    best = r;
                    at = i;
                }
        if (best == n_rules)
            return n;
        ids[at] = rule[best].made;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

// Random merges. `marks`: how a mark may stand behind something: 0 nowhere, as in SentencePiece's
// tokenizers that split at spaces; 1 behind marks, as in theirs with runs of spaces; 2 anywhere.
static void random_bpe(struct tsr_bpe *b, unsigned *seed, int marks, struct rule *rule) {
    char name[N_LETTERS + N_RULES][64];
    int n = N_LETTERS, tries = 0;
    *b = (struct tsr_bpe){.chars = true};
    memset(b->byte_id, 0xFF, sizeof b->byte_id);
    for (int i = 0; i < N_LETTERS; i++) {
        strcpy(name[i], letters[i]);
        assert_int_equal(tsr_bpe_add_letter(b, letters[i], strlen(letters[i]), i), 0);
    }
    while (n < N_LETTERS + N_RULES && tries++ < 100000) {
        int x = (int)(rand_r(seed) % (unsigned)n), y = (int)(rand_r(seed) % (unsigned)n);
        char joined[128];
        snprintf(joined, sizeof joined, "%s%s", name[x], name[y]);
        bool behind = strncmp(name[y], letters[3], 3) == 0;
        bool runs =
            strcmp(name[x] + strlen(name[x]) - (strlen(name[x]) >= 3 ? 3 : 1), letters[3]) == 0;
        bool known = strlen(joined) > 20 || (behind && (marks == 0 || (marks == 1 && !runs)));
        for (int i = 0; i < n; i++)
            known = known || strcmp(name[i], joined) == 0;
        if (known)
            continue;
        strcpy(name[n], joined);
        rule[n - N_LETTERS] = (struct rule){x, y, n};
        assert_int_equal(tsr_bpe_add_seam(b, name[x], strlen(name[x]), name[y], strlen(name[y])),
                         0);
        assert_int_equal(tsr_bpe_add_merge(b, x, y, (uint32_t)(n - N_LETTERS), n), 0);
        n++;
    }
    assert_int_equal(n, N_LETTERS + N_RULES);
}

static void against_naive(void **state) {
    (void)state;
    unsigned seed = 7;
    for (int round = 0; round < 30; round++) {
        struct rule rule[N_RULES];
        struct tsr_bpe b;
        random_bpe(&b, &seed, round % 3, rule);
        for (int k = 0; k < 80; k++) {
            char text[MOST * 4] = "";
            int32_t want[MOST];
            size_t n = 0, n_chars = rand_r(&seed) % MOST;
            for (size_t i = 0; i < n_chars; i++) {
                unsigned c = rand_r(&seed) % 40;
                strcat(text,
                       c < 2 ? strangers[c] : letters[c % N_LETTERS]); // strangers are dropped
                if (c >= 2)
                    want[n++] = (int32_t)(c % N_LETTERS);
            }
            struct tsr_ids got = {0};
            size_t n_want = naive(rule, N_RULES, want, n);
            assert_int_equal(tsr_bpe_encode(&b, text, strlen(text), &got), 0);
            assert_int_equal(got.n, n_want);
            if (n_want > 0)
                assert_memory_equal(got.v, want, n_want * sizeof *want);
            tsr_ids_free(&got);
        }
        tsr_bpe_free(&b);
    }
}

// A book is one word, but needs no more memory than its longest part.
static void long_text(void **state) {
    (void)state;
    unsigned seed = 9;
    struct rule rule[N_RULES];
    struct tsr_bpe b;
    struct tsr_ids got = {0};
    random_bpe(&b, &seed, 1, rule);
    enum { N = 1 << 20 };
    char *text = malloc(N * 5 + 1);
    for (size_t i = 0; i < N; i++)
        memcpy(text + 5 * i,
               "\xE2\x96\x81"
               "ab",
               5);
    assert_int_equal(tsr_bpe_encode(&b, text, (size_t)N * 5, &got), 0);
    assert_true(got.n >= N && got.n <= 3 * (size_t)N);
    assert_true(b.symbol_cap < 100);
    free(text);
    tsr_ids_free(&got);
    tsr_bpe_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_naive),
                                       cmocka_unit_test(long_text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
