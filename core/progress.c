#include "core/progress.h"

const char *tsr_phase_word(uint32_t phase) {
    static const char *const names[] = {
#define X(name, word, words) word,
        TSR_PHASE_MAP(X)
#undef X
    };
    return phase < TSR_N_PHASES ? names[phase] : "unknown";
}

const char *tsr_phase_words(uint32_t phase) {
    static const char *const names[] = {
#define X(name, word, words) words,
        TSR_PHASE_MAP(X)
#undef X
    };
    return phase < TSR_N_PHASES ? names[phase] : "an unknown phase";
}
