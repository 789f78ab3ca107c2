// Small tokenizers written by a test, and their ids as text.
#ifndef TSR_TESTS_TOKENIZER_SUPPORT_H
#define TSR_TESTS_TOKENIZER_SUPPORT_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <sys/stat.h>
#include "core/byte_alphabet.h"
#include "core/error.h"
#include "core/io.h"
#include "core/tokenizer.h"
#include "tests/unit/scratch.h"

#ifndef TESSERA_GOLDEN_DIR
#define TESSERA_GOLDEN_DIR "tests/golden"
#endif

#define PLAIN_BYTE_LEVEL                                                                           \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"
#define GPT2_BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true}"

// The parts of a tokenizer.json; NULL is a default. The vocabulary is all bytes (id = byte), then
// `more` ("\"ab\":256") and the merges.
struct parts {
    const char *pre, *normalizer, *added, *post, *decoder, *options, *more, *merges;
};

static inline const char * or (const char *given, const char *otherwise) {
    return given ? given : otherwise;
}

static inline void append(struct tsr_buf *b, const char *s) {
    assert_int_equal(tsr_buf_append(b, s, strlen(s)), 0);
}

static inline void write_parts(const char *dir, const struct parts *p) {
    struct tsr_buf b = {0};
    char path[TSR_PATH_MAX];
    assert_int_equal(tsr_buf_printf(&b,
                                    "{\"version\":\"1.0\",\"pre_tokenizer\":%s,\"normalizer\":%s,"
                                    "\"added_tokens\":[%s],\"post_processor\":%s,\"decoder\":%s,"
                                    "\"model\":{\"type\":\"BPE\"%s,\"vocab\":{",
                                    or (p->pre, PLAIN_BYTE_LEVEL), or (p->normalizer, "null"),
                                    or (p->added, ""), or (p->post, "null"),
                                    or (p->decoder, "{\"type\":\"ByteLevel\"}"),
                                    or (p->options, "")),
                     0);
    for (int i = 0; i < 256; i++) {
        unsigned char byte = (unsigned char)i;
        append(&b, i ? ",\"" : "\"");
        if (byte == '"' || byte == '\\')
            append(&b, "\\");
        assert_int_equal(tsr_bytes_spell(&byte, 1, &b), 0);
        assert_int_equal(tsr_buf_printf(&b, "\":%d", i), 0);
    }
    assert_int_equal(tsr_buf_printf(&b, "%s%s},\"merges\":[%s]}}", p->more ? "," : "",
                                    or (p->more, ""), or (p->merges, "")),
                     0);
    if (!tsr_path_exists(dir))
        assert_int_equal(mkdir(dir, 0777), 0);
    assert_int_equal(tsr_path_join(path, dir, "tokenizer.json"), 0);
    scratch_write(path, b.data, b.len);
    tsr_buf_free(&b);
}

static inline struct tsr_tokenizer *load_parts(const struct parts *p) {
    struct tsr_tokenizer *t = NULL;
    write_parts(scratch("parts"), p);
    if (tsr_tokenizer_load(&t, scratch("parts")) != 0)
        fail_msg("%s", tsr_error_text());
    return t;
}

// "1 2 3", valid until the next call.
static inline const char *ids_of(struct tsr_tokenizer *t, const char *text, int flags) {
    static char line[4096];
    struct tsr_ids ids = {0};
    size_t at = 0;
    if (tsr_tokenizer_encode(t, text, strlen(text), flags, &ids) != 0)
        fail_msg("%s", tsr_error_text());
    line[0] = 0;
    for (size_t i = 0; i < ids.n; i++)
        at += (size_t)snprintf(line + at, sizeof line - at, "%s%d", i ? " " : "", ids.v[i]);
    tsr_ids_free(&ids);
    return line;
}

#endif
