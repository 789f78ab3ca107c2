#include "core/bpe_train.h"
#include "core/error.h"
#include "core/log.h"
#include "core/tokenizer_parts.h"

#include <string.h>

static int check(const struct tsr_bpe_train *opt, const char *eos) {
    size_t len = strlen(eos);
    if (len == 0 || tsr_utf8_valid_prefix(eos, len) != len)
        return tsr_fail(TSR_EUSAGE, "the special token must be UTF-8 text");
    if (opt->vocab_size < 257 || opt->vocab_size > TSR_MAX_TOKEN_ID + 1)
        return tsr_fail(TSR_EUSAGE,
                        "the vocabulary size must be from 257 (256 bytes and a special token) to "
                        "%d, found %d",
                        TSR_MAX_TOKEN_ID + 1, opt->vocab_size);
    if (opt->n_files < 1)
        return tsr_fail(TSR_EUSAGE, "expected text files to train a tokenizer on");
    if (tsr_path_exists(opt->out_dir) && !tsr_path_is_dir(opt->out_dir))
        return tsr_fail(TSR_EUSAGE, "%s: expected a folder, found a file", opt->out_dir);
    return 0;
}

int tsr_tokenizer_train(const struct tsr_bpe_train *opt) {
    const char *eos = opt->eos ? opt->eos : "<|endoftext|>";
    struct tsr_word_counts words = {0};
    struct tsr_learned learned = {0};
    TSR_TRY(check(opt, eos));
    int rc = tsr_word_counts_read(&words, opt);
    if (rc == 0)
        rc = tsr_bpe_learn(&learned, &words, opt->vocab_size, eos);
    tsr_word_counts_free(&words);
    if (rc == 0 && learned.tokens.n < (size_t)opt->vocab_size)
        tsr_warn("the text has no more pairs: the vocabulary has %zu tokens, not %d",
                 learned.tokens.n, opt->vocab_size);
    if (rc == 0)
        rc = tsr_bpe_write(&learned, opt, eos);
    tsr_learned_free(&learned);
    return rc;
}
