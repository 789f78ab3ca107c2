#include "core/bpe_train.h"
#include "core/error.h"
#include "core/io.h"

#include <stdlib.h>
#include <string.h>

static const char GPT2[] = "{\n"
                           "    \"type\": \"ByteLevel\",\n"
                           "    \"add_prefix_space\": false,\n"
                           "    \"trim_offsets\": true,\n"
                           "    \"use_regex\": true\n"
                           "  }";

// The split of Llama 3 (and of OpenAI's cl100k, without its possessive quantifiers).
static const char LLAMA3[] =
    "{\n"
    "    \"type\": \"Sequence\",\n"
    "    \"pretokenizers\": [\n"
    "      {\n"
    "        \"type\": \"Split\",\n"
    "        \"pattern\": {\n"
    "          \"Regex\": \"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
    "\\\\p{N}{1,3}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"\n"
    "        },\n"
    "        \"behavior\": \"Isolated\",\n"
    "        \"invert\": false\n"
    "      },\n"
    "      {\n"
    "        \"type\": \"ByteLevel\",\n"
    "        \"add_prefix_space\": false,\n"
    "        \"trim_offsets\": true,\n"
    "        \"use_regex\": false\n"
    "      }\n"
    "    ]\n"
    "  }";

const char *tsr_bpe_pretokenizer(bool llama3_pattern) {
    return llama3_pattern ? LLAMA3 : GPT2;
}

// A JSON string; the text is valid UTF-8.
static int put_string(struct tsr_buf *b, const char *s, size_t n_bytes) {
    TSR_TRY(tsr_buf_append(b, "\"", 1));
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c < 0x20)
            TSR_TRY(tsr_buf_printf(b, "\\u%04x", c));
        else if (c == '"' || c == '\\')
            TSR_TRY(tsr_buf_printf(b, "\\%c", c));
        else
            TSR_TRY(tsr_buf_append(b, s + i, 1));
    }
    return tsr_buf_append(b, "\"", 1);
}

static int put_text(struct tsr_buf *b, const char *s) {
    return tsr_buf_append(b, s, strlen(s));
}

static int put_token(struct tsr_buf *b, const struct tsr_learned *l, size_t id) {
    size_t len;
    const char *s = tsr_strmap_at(&l->tokens, id, &len);
    return put_string(b, s, len);
}

static const char FLAGS[] = "\"single_word\": false,\n"
                            "      \"lstrip\": false,\n"
                            "      \"rstrip\": false,\n"
                            "      \"normalized\": false,\n"
                            "      \"special\": true\n"
                            "    }";

static int put_model(struct tsr_buf *b, const struct tsr_learned *l) {
    TSR_TRY(put_text(b, "  \"model\": {\n"
                        "    \"type\": \"BPE\",\n"
                        "    \"dropout\": null,\n"
                        "    \"unk_token\": null,\n"
                        "    \"continuing_subword_prefix\": null,\n"
                        "    \"end_of_word_suffix\": null,\n"
                        "    \"fuse_unk\": false,\n"
                        "    \"byte_fallback\": false,\n"
                        "    \"ignore_merges\": false,\n"
                        "    \"vocab\": {"));
    for (size_t i = 0; i < l->tokens.n; i++) {
        TSR_TRY(put_text(b, i ? ",\n      " : "\n      "));
        TSR_TRY(put_token(b, l, i));
        TSR_TRY(tsr_buf_printf(b, ": %zu", i));
    }
    TSR_TRY(put_text(b, "\n    },\n    \"merges\": ["));
    // "a b" rather than ["a", "b"]: every version of the library reads it, and tokens of bytes
    // have no space.
    for (size_t i = 0; i < l->n_merges; i++) {
        TSR_TRY(put_text(b, i ? ",\n      " : "\n      "));
        TSR_TRY(put_token(b, l, (size_t)l->merge[i].left));
        b->len--; // the closing quote
        TSR_TRY(put_text(b, " "));
        size_t quote = b->len;
        TSR_TRY(put_token(b, l, (size_t)l->merge[i].right));
        memmove(b->data + quote, b->data + quote + 1, b->len - quote); // the opening one
        b->len--;
    }
    return put_text(b, l->n_merges ? "\n    ]\n  }\n" : "]\n  }\n");
}

static int tokenizer_json(struct tsr_buf *b, const struct tsr_learned *l, bool llama3,
                          const char *eos) {
    TSR_TRY(put_text(b, "{\n"
                        "  \"version\": \"1.0\",\n"
                        "  \"truncation\": null,\n"
                        "  \"padding\": null,\n"
                        "  \"added_tokens\": [\n"
                        "    {\n"
                        "      \"id\": 0,\n"
                        "      \"content\": "));
    TSR_TRY(put_string(b, eos, strlen(eos)));
    TSR_TRY(tsr_buf_printf(b,
                           ",\n      %s\n  ],\n"
                           "  \"normalizer\": null,\n"
                           "  \"pre_tokenizer\": %s,\n"
                           "  \"post_processor\": null,\n"
                           "  \"decoder\": {\n"
                           "    \"type\": \"ByteLevel\",\n"
                           "    \"add_prefix_space\": true,\n"
                           "    \"trim_offsets\": true,\n"
                           "    \"use_regex\": true\n"
                           "  },\n",
                           FLAGS, tsr_bpe_pretokenizer(llama3)));
    TSR_TRY(put_model(b, l));
    return put_text(b, "}\n");
}

static int config_json(struct tsr_buf *b, const char *eos) {
    TSR_TRY(put_text(b, "{\n"
                        "  \"added_tokens_decoder\": {\n"
                        "    \"0\": {\n"
                        "      \"content\": "));
    TSR_TRY(put_string(b, eos, strlen(eos)));
    TSR_TRY(tsr_buf_printf(b, ",\n      %s\n  },\n  \"bos_token\": ", FLAGS));
    TSR_TRY(put_string(b, eos, strlen(eos)));
    TSR_TRY(put_text(b, ",\n  \"clean_up_tokenization_spaces\": false,\n  \"eos_token\": "));
    TSR_TRY(put_string(b, eos, strlen(eos)));
    // The number by which transformers says "no limit".
    return put_text(b, ",\n"
                       "  \"model_max_length\": 1000000000000000019884624838656,\n"
                       "  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n"
                       "}\n");
}

static int map_json(struct tsr_buf *b, const char *eos) {
    TSR_TRY(put_text(b, "{\n  \"bos_token\": "));
    TSR_TRY(put_string(b, eos, strlen(eos)));
    TSR_TRY(put_text(b, ",\n  \"eos_token\": "));
    TSR_TRY(put_string(b, eos, strlen(eos)));
    return put_text(b, "\n}\n");
}

static int write_into(const char *dir, const char *name, const struct tsr_buf *b) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, dir, name));
    return tsr_write_file_durable(path, b->data, b->len);
}

// tokenizer.json goes last: a folder that has it is complete.
int tsr_bpe_write(const struct tsr_learned *l, const struct tsr_bpe_train *opt, const char *eos) {
    struct tsr_buf main = {0}, config = {0}, map = {0};
    int rc = tokenizer_json(&main, l, opt->llama3_pattern, eos);
    if (rc == 0)
        rc = config_json(&config, eos);
    if (rc == 0)
        rc = map_json(&map, eos);
    if (rc == 0)
        rc = tsr_mkdir_p(opt->out_dir);
    if (rc == 0)
        rc = write_into(opt->out_dir, "special_tokens_map.json", &map);
    if (rc == 0)
        rc = write_into(opt->out_dir, "tokenizer_config.json", &config);
    if (rc == 0)
        rc = write_into(opt->out_dir, "tokenizer.json", &main);
    tsr_buf_free(&main);
    tsr_buf_free(&config);
    tsr_buf_free(&map);
    return rc;
}
