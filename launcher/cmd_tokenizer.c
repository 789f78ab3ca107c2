// `tessera tokenizer train|encode|decode`
#include "launcher/commands.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "core/run.h"
#include "core/tokenizer.h"
#include "launcher/options.h"

enum { MAX_FILES = 4096, MAX_VOCAB = 1 << 22 };

static int run_train(int argc, char **argv) {
    static const char *files[MAX_FILES];
    const char *out_dir = NULL, *pattern = "gpt2";
    int64_t vocab_size = 0;
    const struct tsr_option options[] = {
        {"output", 'o', TSR_OPT_STRING, &out_dir, "DIR", 0, 0, "folder to write into (required)"},
        {"vocab-size", 0, TSR_OPT_INT, &vocab_size, "N", 257, MAX_VOCAB,
         "tokens, with the 256 bytes and <|endoftext|> (required)"},
        {"pattern", 0, TSR_OPT_STRING, &pattern, "NAME", 0, 0,
         "how text is cut into words: gpt2 (the default) or llama3"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera tokenizer train",
        .usage = "-o DIR --vocab-size N [--pattern gpt2|llama3] FILE…",
        .about =
            "Learns a byte-level BPE vocabulary from UTF-8 text and writes tokenizer.json,\n"
            "tokenizer_config.json and special_tokens_map.json. The result depends on nothing\n"
            "but the text and the options; equal counts go to the pair with the lower ids.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 0,
        .max_args = MAX_FILES,
    };
    int n_files, rc = tsr_options_parse(&cl, argc, argv, files, &n_files);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (!out_dir)
        return tsr_fail(TSR_EUSAGE, "-o DIR is missing; usage: %s %s", cl.command, cl.usage);
    if (vocab_size == 0)
        return tsr_fail(TSR_EUSAGE, "--vocab-size N is missing; usage: %s %s", cl.command,
                        cl.usage);
    if (n_files == 0)
        return tsr_fail(TSR_EUSAGE, "a text FILE is missing; usage: %s %s", cl.command, cl.usage);
    if (strcmp(pattern, "gpt2") != 0 && strcmp(pattern, "llama3") != 0)
        return tsr_fail(TSR_EUSAGE, "--pattern takes gpt2 or llama3, not \"%s\"", pattern);
    const struct tsr_bpe_train opt = {.vocab_size = (int32_t)vocab_size,
                                      .files = files,
                                      .n_files = n_files,
                                      .out_dir = out_dir,
                                      .llama3_pattern = strcmp(pattern, "llama3") == 0};
    return tsr_tokenizer_train(&opt);
}

// All of a file, or of standard input when `path` is NULL or "-".
static int read_input(const char *path, struct tsr_buf *in) {
    char block[1 << 16];
    if (path && strcmp(path, "-") != 0) {
        char *text;
        size_t n_bytes;
        TSR_TRY(tsr_read_file(path, SIZE_MAX / 4, TSR_EDATA, &text, &n_bytes));
        *in = (struct tsr_buf){text, n_bytes, n_bytes + 1};
        return 0;
    }
    for (;;) {
        ssize_t n = read(STDIN_FILENO, block, sizeof block);
        if (n == 0)
            return tsr_buf_append(in, "", 0);
        if (n < 0 && errno != EINTR)
            return tsr_fail(TSR_EIO, "standard input: cannot read: %s", strerror(errno));
        if (n > 0)
            TSR_TRY(tsr_buf_append(in, block, (size_t)n));
    }
}

static int print_ids(const struct tsr_ids *ids, bool json, size_t n_bytes) {
    struct tsr_buf out = {0};
    int rc = json ? tsr_buf_printf(&out, "{\"n_bytes\": %zu, \"n_tokens\": %zu, \"ids\": [",
                                   n_bytes, ids->n)
                  : 0;
    const char *comma = json ? ", " : " ";
    for (size_t i = 0; i < ids->n && rc == 0; i++)
        rc = tsr_buf_printf(&out, "%s%d", i ? comma : "", ids->v[i]);
    if (rc == 0)
        rc = tsr_buf_printf(&out, json ? "]}\n" : "\n");
    if (rc == 0)
        rc = tsr_write_all(STDOUT_FILENO, out.data, out.len, "standard output");
    tsr_buf_free(&out);
    return rc;
}

static int encode_file(const char *dir, const char *path, int flags, bool json) {
    struct tsr_tokenizer *t = NULL;
    struct tsr_buf in = {0};
    struct tsr_ids ids = {0};
    int rc = tsr_tokenizer_load(&t, dir);
    if (rc == 0)
        rc = read_input(path, &in);
    if (rc == 0) {
        rc = tsr_tokenizer_encode(t, in.data, in.len, flags, &ids);
        if (rc < 0)
            rc = tsr_fail_prefix(rc, "%s", path ? path : "standard input");
    }
    if (rc == 0)
        rc = print_ids(&ids, json, in.len);
    tsr_ids_free(&ids);
    tsr_buf_free(&in);
    tsr_tokenizer_free(t);
    return rc;
}

static int run_encode(int argc, char **argv) {
    bool plain = false, add_special = false, json = false;
    const char *args[2] = {0};
    const struct tsr_option options[] = {
        {"plain", 0, TSR_OPT_FLAG, &plain, NULL, 0, 0, "special tokens in the text are plain text"},
        {"add-special", 0, TSR_OPT_FLAG, &add_special, NULL, 0, 0,
         "add BOS and EOS as the tokenizer's post-processor says"},
        {"json", 0, TSR_OPT_FLAG, &json, NULL, 0, 0, "one object: n_bytes, n_tokens, ids"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera tokenizer encode",
        .usage = "DIR [FILE] [--plain] [--add-special] [--json]",
        .about = "Prints the token ids of a file's exact bytes (of standard input without FILE),\n"
                 "which must be UTF-8, on one line. DIR holds a tokenizer.json.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 1,
        .max_args = 2,
    };
    int n_args, rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    int flags = (plain ? TSR_ENCODE_PLAIN : 0) | (add_special ? TSR_ENCODE_ADD_SPECIAL : 0);
    return encode_file(args[0], n_args > 1 ? args[1] : NULL, flags, json);
}

// Ids between white space.
static int parse_ids(const struct tsr_buf *in, struct tsr_ids *ids) {
    for (size_t i = 0; i < in->len;) {
        if (isspace((unsigned char)in->data[i])) {
            i++;
            continue;
        }
        size_t begin = i;
        int64_t id = 0;
        for (; i < in->len && isdigit((unsigned char)in->data[i]) && id <= INT32_MAX; i++)
            id = 10 * id + (in->data[i] - '0');
        if (id > INT32_MAX || (i < in->len && !isspace((unsigned char)in->data[i])))
            return tsr_fail(TSR_EDATA,
                            "expected token ids and spaces, found \"%.*s\" at offset %zu",
                            (int)strcspn(in->data + begin, " \t\r\n"), in->data + begin, begin);
        TSR_TRY(tsr_ids_push(ids, (int32_t)id));
    }
    return 0;
}

static int decode_file(const char *dir, const char *path, bool skip_special) {
    struct tsr_tokenizer *t = NULL;
    struct tsr_buf in = {0}, out = {0};
    struct tsr_ids ids = {0};
    int rc = tsr_tokenizer_load(&t, dir);
    if (rc == 0)
        rc = read_input(path, &in);
    if (rc == 0) {
        rc = parse_ids(&in, &ids);
        if (rc == 0)
            rc = tsr_tokenizer_decode(t, ids.v, ids.n, skip_special, &out);
        if (rc < 0)
            rc = tsr_fail_prefix(rc, "%s", path ? path : "standard input");
    }
    size_t extra = rc == 0 ? tsr_tokenizer_extra_spaces(t, out.data, out.len) : 0;
    if (rc == 0 && out.len > extra)
        rc = tsr_write_all(STDOUT_FILENO, out.data + extra, out.len - extra, "standard output");
    tsr_ids_free(&ids);
    tsr_buf_free(&in);
    tsr_buf_free(&out);
    tsr_tokenizer_free(t);
    return rc;
}

static int run_decode(int argc, char **argv) {
    bool skip_special = false;
    const char *args[2] = {0};
    const struct tsr_option options[] = {
        {"skip-special", 0, TSR_OPT_FLAG, &skip_special, NULL, 0, 0, "leave special tokens out"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera tokenizer decode",
        .usage = "DIR [FILE] [--skip-special]",
        .about = "Writes the exact bytes of token ids, which are read from a file (from standard\n"
                 "input without FILE). DIR holds a tokenizer.json.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 1,
        .max_args = 2,
    };
    int n_args, rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    return decode_file(args[0], n_args > 1 ? args[1] : NULL, skip_special);
}

static const struct tsr_part parts[] = {
    {"train", "learn a byte-level BPE tokenizer from text", run_train},
    {"encode", "text to token ids", run_encode},
    {"decode", "token ids to text", run_decode},
};

int tsr_cmd_tokenizer(int argc, char **argv) {
    return tsr_parts_run("tessera tokenizer", "BPE tokenizers in Hugging Face's tokenizer.json.",
                         parts, sizeof parts / sizeof *parts, argc, argv);
}
