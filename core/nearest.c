#include "core/run.h"

#include <ctype.h>
#include <string.h>

enum { MAX_WORD = 63 };

static int fold(char c) {
    return c == '-' ? '_' : tolower((unsigned char)c);
}

static int min2(int a, int b) {
    return a < b ? a : b;
}

// Edit distance with swaps of neighbours (optimal string alignment: Damerau 1964, Levenshtein
// 1966), blind to case and to '-' against '_'. Words longer than MAX_WORD are never near.
static int distance(const char *a, const char *b) {
    int n_a = (int)strnlen(a, MAX_WORD + 1), n_b = (int)strnlen(b, MAX_WORD + 1);
    int rows[3][MAX_WORD + 1];
    if (n_a > MAX_WORD || n_b > MAX_WORD)
        return 2 * MAX_WORD;
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (int j = 0; j <= n_b; j++)
        now[j] = j;
    for (int i = 1; i <= n_a; i++) {
        int *free_row = before;
        before = last;
        last = now;
        now = free_row;
        now[0] = i;
        for (int j = 1; j <= n_b; j++) {
            int change = fold(a[i - 1]) != fold(b[j - 1]);
            now[j] = min2(min2(last[j], now[j - 1]) + 1, last[j - 1] + change);
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) &&
                fold(a[i - 2]) == fold(b[j - 1]))
                now[j] = min2(now[j], before[j - 2] + 1);
        }
    }
    return now[n_b];
}

const char *tsr_nearest(const char *word, const char *const *known, int n_known) {
    const char *best = NULL;
    int best_distance = 0;
    for (int i = 0; i < n_known; i++) {
        int longer = (int)strnlen(known[i], MAX_WORD), n = (int)strnlen(word, MAX_WORD);
        int near = 1 + (longer > n ? longer : n) / 4; // one slip, and one more for each 4 letters
        int d = distance(word, known[i]);
        if (d <= near && d < (longer > n ? longer : n) && (!best || d < best_distance)) {
            best = known[i];
            best_distance = d;
        }
    }
    return best;
}
