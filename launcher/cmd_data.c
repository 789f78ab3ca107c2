// tessera data build|info: text and JSONL into Megatron-style .bin/.idx, and a look at such files.
#include "core/dataset_cache.h"
#include "core/error.h"
#include "core/indexed.h"
#include "launcher/commands.h"
#include "launcher/json_out.h"
#include "launcher/options.h"

#include <stdio.h>
#include <stdlib.h>

static int print_json(const struct tsr_indexed *x, const char *prefix) {
    json_t *o = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I}", "prefix", prefix, "dtype",
        tsr_idx_dtype_name(tsr_indexed_dtype(x)), "documents",
        (json_int_t)tsr_indexed_n_documents(x), "sequences", (json_int_t)tsr_indexed_n_sequences(x),
        "tokens", (json_int_t)tsr_indexed_n_tokens(x), "bytes",
        (json_int_t)(tsr_indexed_n_tokens(x) * (int64_t)tsr_idx_dtype_size(tsr_indexed_dtype(x))));
    if (!o)
        return tsr_fail(TSR_EUSAGE, "%s: cannot be written as JSON: it isn't UTF-8", prefix);
    return tsr_print_json(o);
}

static int print_info(const char *prefix, bool json) {
    struct tsr_indexed *x;
    TSR_TRY(tsr_indexed_open(&x, prefix));
    int rc = 0;
    if (json)
        rc = print_json(x, prefix);
    else
        printf("%s: %lld tokens of %s in %lld documents (%lld sequences)\n", prefix,
               (long long)tsr_indexed_n_tokens(x), tsr_idx_dtype_name(tsr_indexed_dtype(x)),
               (long long)tsr_indexed_n_documents(x), (long long)tsr_indexed_n_sequences(x));
    tsr_indexed_close(x);
    return rc;
}

static int build_with(struct tsr_tokenizer *t, const char *dir, const char *prefix, bool append_eos,
                      const char *const *files, int n_files) {
    int32_t eos = append_eos ? tsr_tokenizer_eos(t) : -1;
    char folder[TSR_PATH_MAX];
    if (append_eos && eos < 0)
        return tsr_fail(TSR_EMODEL, "%s: --append-eos: the tokenizer has no EOS token", dir);
    TSR_TRY(tsr_path_dir(folder, prefix));
    TSR_TRY(tsr_mkdir_p(folder));
    return tsr_text_to_indexed(prefix, tsr_tokenizer_vocab(t), eos, append_eos, files, n_files,
                               TSR_PART_ALL, t);
}

// Many files: as many positional arguments as there are.
static int build(int argc, char **argv) {
    const char *dir = NULL, *prefix = NULL;
    bool append_eos = false, json = false;
    int n_files = 0;
    const struct tsr_option options[] = {
        {"tokenizer", 't', TSR_OPT_STRING, &dir, "DIR", 0, 0,
         "folder of tokenizer.json (required)"},
        {"output", 'o', TSR_OPT_STRING, &prefix, "PREFIX", 0, 0,
         "writes PREFIX.bin and PREFIX.idx (required)"},
        {"append-eos", 0, TSR_OPT_FLAG, &append_eos, NULL, 0, 0,
         "end each document with the EOS token"},
        {"json", 0, TSR_OPT_FLAG, &json, NULL, 0, 0, "print what was written as one JSON object"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera data build",
        .usage = "-t DIR -o PREFIX [--append-eos] [--json] FILE…",
        .about = "Tokenizes text files (a document each) and .jsonl files (a document each line)\n"
                 "into one pair of Megatron-style files.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = argc};
    const char **files = calloc((size_t)argc + 1, sizeof *files);
    if (!files)
        return tsr_fail(TSR_ENOMEM, "out of memory: %d arguments", argc);
    struct tsr_tokenizer *t = NULL;
    int rc = tsr_options_parse(&cl, argc, argv, files, &n_files);
    if (rc == 0 && (!dir || !prefix))
        rc = tsr_fail(TSR_EUSAGE, "--%s is missing; usage: %s %s", dir ? "output" : "tokenizer",
                      cl.command, cl.usage);
    if (rc == 0)
        rc = tsr_tokenizer_load(&t, dir);
    if (rc == 0)
        rc = build_with(t, dir, prefix, append_eos, files, n_files);
    if (rc == 0)
        rc = print_info(prefix, json);
    tsr_tokenizer_free(t);
    free(files);
    return rc < 0 ? rc : 0;
}

static int info(int argc, char **argv) {
    bool json = false;
    const char *given;
    int n_given;
    char prefix[TSR_PATH_MAX];
    enum tsr_source_kind kind;
    const struct tsr_option options[] = {
        {"json", 0, TSR_OPT_FLAG, &json, NULL, 0, 0, "print one JSON object"}};
    const struct tsr_command_line cl = {
        .command = "tessera data info",
        .usage = "PREFIX [--json]",
        .about = "Checks PREFIX.bin and PREFIX.idx and prints what they hold.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = 1};
    int rc = tsr_options_parse(&cl, argc, argv, &given, &n_given);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    TSR_TRY(tsr_source_resolve(given, &kind, prefix));
    if (kind != TSR_SOURCE_INDEXED)
        return tsr_fail(TSR_EDATA, "%s: expected the prefix of a .bin and .idx file, found text",
                        given);
    return print_info(prefix, json);
}

static const struct tsr_part parts[] = {
    {"build", "text and JSONL into one pair of files", build},
    {"info", "check a pair of files and say what it holds", info},
};

int tsr_cmd_data(int argc, char **argv) {
    return tsr_parts_run("tessera data", "Builds and inspects Megatron-style .bin/.idx data.",
                         parts, sizeof parts / sizeof *parts, argc, argv);
}
