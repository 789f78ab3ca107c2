#include "tests/unit/run_file.h"

#include <unistd.h>

static void defaults(void **state) {
    (void)state;
    struct tsr_run r = load_good(MINIMAL, NULL);
    char expected[TSR_PATH_MAX];
    assert_string_equal(r.run.name, "run");
    tsr_path_join(expected, test_dir, "runs/run");
    assert_string_equal(r.run.dir, expected);
    assert_string_equal(r.model.preset, "tiny-llama");
    assert_null(r.model.from);
    assert_null(r.model.tokenizer);
    assert_int_equal(r.train.steps, 10);
    assert_int_equal(r.train.global_batch, 8);
    assert_int_equal(r.train.micro_batch, 1);
    assert_int_equal(r.train.decay, -1);
    assert_true(r.train.lr == 3e-4 && r.train.beta2 == 0.95 && r.train.eps == 1e-8);
    assert_true(r.parallel.exact && r.data.shuffle && !r.parallel.sequence);
    assert_int_equal(r.parallel.dp, 0);
    assert_int_equal(r.parallel.schedule, TSR_PIPE_1F1B);
    assert_string_equal(r.checkpoint.resume, "auto");
    assert_int_equal(r.data.train.n, 0);
    tsr_run_free(&r);
}

static const char everything[] =
    "run: {name: \"a \\\"b\\\" \\u00e9\\u2028\\x85\", dir: out/../out, seed: 9223372036854775807}\n"
    "model:\n"
    "  config:\n"
    "    model_type: llama\n"
    "    rms_norm_eps: 1e-5\n"
    "    rope_theta: 4.5\n"
    "    initializer_range: .5\n"
    "    hidden_size: 64\n"
    "    num_attention_heads: 4\n"
    "    eos_token_id: [1, 2]\n"
    "    tie_word_embeddings: True\n"
    "    rope_scaling: ~\n"
    "    some_note: 'it''s \"so\"'\n"
    "    wide: {a: +1, b: 007, c: 1., d: -.25E+3, e: \"12\"}\n"
    "  tokenizer: /abs/tok\n"
    "data:\n"
    "  train:\n"
    "    - ../x.txt\n"
    "    - {path: \"/y z\", weight: 2.5}\n"
    "  valid: v.jsonl\n"
    "  seq_len: 128\n"
    "  shuffle: false\n"
    "  packing: isolated\n"
    "train: {steps: 100, global_batch: 24, micro_batch: 4, lr: 1e-3, schedule: wsd, warmup: 5,\n"
    "  decay: 10, min_lr: 1.5e-05, beta1: 0.85, beta2: 0.999, eps: 1E-9, weight_decay: 0,\n"
    "  clip: 0.5, recompute: full, eval_every: 7,\n"
    "  dropout: {embedding: 0.1, attention: 0.2, residual: 0.3, ffn: 0.4}}\n"
    "parallel: {tp: 3, pp: 2, dp: 3, schedule: interleaved, chunks: 2, sequence: true,\n"
    "  exact: true, virtual_shards: 24, virtual_replicas: 6}\n"
    "checkpoint: {every: 20, keep: 3, resume: ckpt}\n"
    "device: {backend: cpu, threads: 2}\n";

static void every_field(void **state) {
    (void)state;
    struct tsr_run r = load_good(everything, NULL);
    char path[TSR_PATH_MAX];
    assert_string_equal(r.run.name, "a \"b\" \xc3\xa9\xe2\x80\xa8\xc2\x85");
    assert_int_equal(r.run.seed, INT64_MAX);
    assert_string_equal(
        r.model.config,
        "{\"model_type\": \"llama\", \"rms_norm_eps\": 1e-5, \"rope_theta\": 4.5, "
        "\"initializer_range\": 0.5, \"hidden_size\": 64, \"num_attention_heads\": 4, "
        "\"eos_token_id\": [1, 2], \"tie_word_embeddings\": true, \"rope_scaling\": null, "
        "\"some_note\": \"it's \\\"so\\\"\", "
        "\"wide\": {\"a\": 1, \"b\": 7, \"c\": 1.0, \"d\": -0.25E+3, \"e\": \"12\"}}");
    assert_string_equal(r.model.tokenizer, "/abs/tok");
    assert_int_equal(r.data.train.n, 2);
    tsr_path_dir(path, test_dir);
    tsr_path_join(path, path, "x.txt");
    assert_string_equal(r.data.train.items[0].path, path);
    assert_true(r.data.train.items[0].weight == 1.0 && r.data.train.items[1].weight == 2.5);
    assert_string_equal(r.data.train.items[1].path, "/y z");
    assert_int_equal(r.data.valid.n, 1);
    assert_int_equal(r.data.packing, TSR_PACK_ISOLATED);
    assert_int_equal(r.train.schedule, TSR_LR_WSD);
    assert_true(r.train.min_lr == 1.5e-05 && r.train.dropout.ffn == 0.4);
    assert_int_equal(r.train.recompute, TSR_RECOMPUTE_FULL);
    assert_int_equal(r.parallel.chunks, 2);
    assert_true(r.parallel.sequence);
    tsr_path_join(path, test_dir, "ckpt");
    assert_string_equal(r.checkpoint.resume, path);
    assert_int_equal(r.device.threads, 2);
    tsr_run_free(&r);
}

// The dump reads back as the same run: then both dump alike, and nothing counts as changed.
static void dump_round_trip(void **state) {
    (void)state;
    const char *const texts[] = {MINIMAL, everything};
    for (int i = 0; i < 2; i++) {
        struct tsr_run a = load_good(texts[i], NULL);
        struct tsr_buf first = {0}, second = {0};
        assert_int_equal(tsr_run_dump(&a, &first), 0);
        struct tsr_run b = load_good(first.data, NULL);
        assert_int_equal(tsr_run_dump(&b, &second), 0);
        assert_string_equal(first.data, second.data);
        assert_string_equal(a.run.name, b.run.name);
        assert_int_equal(tsr_run_check_resume(&a, second.data, "x"), 0);
        tsr_buf_free(&first);
        tsr_buf_free(&second);
        tsr_run_free(&a);
        tsr_run_free(&b);
    }
}

static void all_mistakes_at_once(void **state) {
    (void)state;
    expect_mistakes("model:\n"
                    "  preset: tiny-lama\n"
                    "train:\n"
                    "  stpes: 5\n"
                    "  lr: fast\n"
                    "  lr: 1\n"
                    "  beta1: 1.0\n"
                    "  warmup: -1\n"
                    "  global_batch: \"8\"\n"
                    "  micro_batch: 1_000\n"
                    "  recompute: ful\n"
                    "  clip:\n"
                    "paralel:\n"
                    "  tp: 2\n"
                    "lr: 3\n"
                    "data: [a]\n",
                    OVERRIDES("train.eps=big", "data.shufle=true", "device.threads=1.5"),
                    PIECES("run.yaml:2:11: model.preset: unknown preset tiny-lama; did you mean "
                           "tiny-llama?",
                           "run.yaml:4:3: train.stpes: unknown key; did you mean train.steps?",
                           "run.yaml:5:7: train.lr: expected number >= 0, found fast",
                           "run.yaml:6:3: train.lr: given twice, first in line 5",
                           "run.yaml:7:10: train.beta1: expected number >= 0 and < 1, found 1.0",
                           "run.yaml:8:11: train.warmup: expected integer >= 0, found -1",
                           "run.yaml:9:17: train.global_batch: expected integer >= 1",
                           "found the text \"8\"",
                           "run.yaml:10:16: train.micro_batch: expected integer", "found 1_000",
                           "run.yaml:11:14: train.recompute: expected none|selective|full, found "
                           "ful; did you mean full?",
                           "train.clip: expected number >= 0", "found nothing",
                           "run.yaml:13:1: paralel: unknown key; did you mean parallel?",
                           "run.yaml:15:1: lr: unknown key; did you mean train.lr?",
                           "run.yaml:16:7: data: expected a mapping of keys, found a list",
                           "`train.eps=big`: train.eps: expected number",
                           "`data.shufle=true`: data.shufle: unknown key; did you mean "
                           "data.shuffle?",
                           "`device.threads=1.5`: device.threads: expected integer",
                           "run.yaml: train.steps: missing: expected integer >= 1"));
}

static void wrong_values(void **state) {
    (void)state;
    static const struct {
        const char *text, *piece;
    } cases[] = {
        {"train: {steps: 1e2}", "1:16: train.steps: expected integer >= 1, found 1e2"},
        {"train: {steps: 0}", "expected integer >= 1, found 0"},
        {"train: {steps: 0x10}", "found 0x10"},
        {"train: {steps: 99999999999999999999}", "found 99999999999999999999"},
        {"train: {steps: [1]}", "found a list"},
        {"train: {lr: .inf}", "found .inf"},
        {"train: {lr: .nan}", "found .nan"},
        {"train: {lr: 1e999}", "found 1e999"},
        {"train: {lr: -1}", "found -1"},
        {"train: {dropout: {ffn: 1}}", "expected number >= 0 and < 1, found 1"},
        {"train: {dropout: 0.1}", "train.dropout: expected a mapping of keys, found 0.1"},
        {"train: {dropout: {fnn: 0.1}}", "did you mean train.dropout.ffn?"},
        {"train: {schedule: 1}", "expected constant|linear|cosine|wsd, found 1"},
        {"data: {shuffle: yes}", "expected true|false, found yes"},
        {"data: {shuffle: \"true\"}", "found the text \"true\""},
        {"data: {train: [[a]]}", "data.train: expected list of paths"},
        {"data: {train: [{path: a, wieght: 2}]}", "wieght: unknown key; did you mean weight?"},
        {"data: {train: [{weight: 2}]}", "data.train: `path` is missing"},
        {"data: {train: [{path: a, weight: 0}]}", "weight: expected a number > 0"},
        {"data: {train: [{path: a, path: b}]}", "given twice"},
        {"data: {train: [\"\"]}", "found the text \"\""},
        {"data: {train: [\"a\\0b\"]}", "data.train: expected list"},
        {"model: {config: tiny.json}", "model.config: expected mapping"},
        {"model: {config: {model_type: gpt2, n_layers: 2}}", "did you mean n_layer?"},
        {"model: {config: {model_type: gpt2, n_layer: 0}}", "`n_layer`: expected 1 to"},
        {"model: {config: {model_type: gpt2, n_layer: 1, n_layer: 2}}", "given twice"},
        {"model: {config: {model_type: bert}}", "found bert"},
        {"model: {tokenizer: \"a\\0b\"}", "model.tokenizer: expected path"},
        {"run: {dir: ''}", "run.dir: expected path"},
        {"checkpoint: {resume: \"\"}", "expected auto|none|path"},
        {"zzzzzzzzzz: 1",
         "expected one of run, model, data, train, parallel, checkpoint, supervise, device"},
        {"train.steps: 5", "train.steps: unknown key"},
        {"{[a]: 1}", "expected a word as a key, found a list"},
        {"? \n: 1", "expected a word as a key"},
        {"[a, b]", "expected a mapping of keys, found a list"},
        {"just text", "found just text"},
        {"a: 1\n---\nb: 2", "expected one YAML document"},
        {"a: 1\n b: 2", "run.yaml:2:"},
        {"train: {steps: 5", "not valid YAML"},
        {"train:\n\tsteps: 5", "run.yaml:2:1: not valid YAML"},
        {"a: *b", "not valid YAML"},
        {"", "the file is empty"},
        {"# nothing\n", "the file is empty"},
        {"---\n...\n", "the file is empty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_mistakes(cases[i].text, NULL, PIECES(cases[i].piece));
}

static void not_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *piece;
    } cases[] = {
        {"run:\n  name: a\xff", 15, "run.yaml:2:10: expected UTF-8 text"},
        {"a: \xc3", 4, "run.yaml:1:4: expected UTF-8 text"},
        {"a: \xc0\x80", 5, "expected UTF-8 text"},
        {"a: \xed\xa0\x80", 6, "expected UTF-8 text"},
        {"a\0b: 1", 6, "expected UTF-8 text"},
        {"\xff\xfe"
         "a\0",
         4, "run.yaml:1:1: expected UTF-8 text"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tsr_run r;
        int rc = tsr_run_load(&r, write_bytes(cases[i].text, cases[i].n), NULL, 0);
        assert_int_equal(rc, TSR_ECONFIG);
        if (!strstr(tsr_error_text(), cases[i].piece))
            fail_msg("case %zu: %s", i, tsr_error_text());
    }
    struct tsr_run r = load_good("\xef\xbb\xbf" MINIMAL, NULL); // a byte order mark is fine
    tsr_run_free(&r);
}

// Aliases are fine, but neither a loop nor a doubling chain of them may take memory or time.
static void aliases_and_depth(void **state) {
    (void)state;
    struct tsr_run r = load_good("model: {preset: &p tiny-gpt}\nrun: {name: *p}\n"
                                 "data: {train: [&s {path: a.bin, weight: 2}, *s]}\n"
                                 "train: {steps: 3}",
                                 NULL);
    assert_string_equal(r.run.name, "tiny-gpt");
    assert_true(r.data.train.n == 2 && r.data.train.items[1].weight == 2.0);
    tsr_run_free(&r);
    expect_mistakes("model: {config: &c {a: *c}}", NULL, PIECES("nested too deeply"));
    expect_mistakes("train: &t {dropout: *t}", NULL, PIECES("train.dropout.dropout"));
    char text[4000] = "model: {config: {a0: &a0 [x, x, x, x, x, x, x, x, x, x]";
    for (int i = 1; i < 25; i++)
        sprintf(text + strlen(text), ",\n a%d: &a%d [*a%d, *a%d, *a%d, *a%d]", i, i, i - 1, i - 1,
                i - 1, i - 1);
    strcat(text, "}}");
    expect_mistakes(text, NULL, PIECES("model.config: too long"));
    size_t n = 200000;
    char *deep = malloc(n + 1);
    memset(deep, '[', n);
    deep[n] = 0;
    expect_mistakes(deep, NULL, PIECES("run.yaml:1:"));
    for (size_t i = 0; i + 1 < n; i += 2) // "- - - - …"
        memcpy(deep + i, "- ", 2);
    expect_mistakes(deep, NULL, PIECES("run.yaml:1:"));
    free(deep);
}

static void many_mistakes_are_counted(void **state) {
    (void)state;
    char text[20000] = "";
    for (int i = 0; i < 400; i++)
        sprintf(text + strlen(text), "train_key_%d: 1\n", i);
    expect_mistakes(text, NULL, PIECES("run.yaml:1:1: train_key_0", "more mistakes"));
    assert_true(strlen(tsr_error_text()) < TSR_ERROR_TEXT - 1);
}

static void overrides_win(void **state) {
    (void)state;
    char cwd[TSR_PATH_MAX], path[TSR_PATH_MAX];
    struct tsr_run r = load_good(
        MINIMAL, OVERRIDES("train.steps=50", "train.steps=60",
                           "data.train=[a.bin,{path: /b, "
                           "weight: 3}]",
                           "train.dropout={ffn: 0.25}", "model.preset=null",
                           "model.config={model_type: gpt2, n_layer: 3, layer_norm_epsilon: 1e-6}",
                           "model.config.n_embd=96", "run.name=a=b",
                           "data.valid=", "checkpoint.resume=./x"));
    assert_int_equal(r.train.steps, 60);
    assert_true(r.train.dropout.ffn == 0.25);
    assert_non_null(getcwd(cwd, sizeof cwd));
    tsr_path_join(path, cwd, "a.bin");
    assert_string_equal(r.data.train.items[0].path, path);
    assert_string_equal(r.data.train.items[1].path, "/b");
    tsr_path_join(path, cwd, "x");
    assert_string_equal(r.checkpoint.resume, path);
    assert_null(r.model.preset);
    assert_non_null(strstr(r.model.config, "\"n_embd\": 96"));
    assert_string_equal(r.run.name, "a=b");
    tsr_run_free(&r);
}

static void wrong_overrides(void **state) {
    (void)state;
    struct tsr_run r;
    assert_int_equal(load_with(&r, MINIMAL, OVERRIDES("train.steps")), TSR_EUSAGE);
    assert_non_null(strstr(tsr_error_text(), "`train.steps`: expected KEY=VALUE"));
    assert_int_equal(load_with(&r, MINIMAL, OVERRIDES("=5")), TSR_EUSAGE);
    expect_mistakes(MINIMAL, OVERRIDES("data.train=[a"), PIECES("`data.train=[a`: not valid YAML"));
    expect_mistakes(MINIMAL, OVERRIDES("train.steps="), PIECES("found nothing"));
    expect_mistakes(MINIMAL, OVERRIDES("tp=2"), PIECES("did you mean parallel.tp?"));
    expect_mistakes(MINIMAL, OVERRIDES("train=5"), PIECES("train: expected a mapping"));
    expect_mistakes(MINIMAL, OVERRIDES("model.config.n_layer=2"), PIECES("no model.config"));
    expect_mistakes("model: {config: {model_type: gpt2}}\ntrain: {steps: 1}",
                    OVERRIDES("model.config.n_layr=2"), PIECES("did you mean n_layer?"));
    expect_mistakes("model: {config: {model_type: gpt2}}\ntrain: {steps: 1}",
                    OVERRIDES("model.config.a.b=2"), PIECES("no place for this key"));
    expect_mistakes(MINIMAL, OVERRIDES("train.lr=\xff"), PIECES("expected UTF-8"));
}

static void missing_file(void **state) {
    (void)state;
    struct tsr_run r;
    assert_int_equal(tsr_run_load(&r, "/nonexistent/run.yaml", NULL, 0), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "/nonexistent/run.yaml: expected a run file"));
    assert_true(tsr_run_load(&r, test_dir, NULL, 0) < 0);
}

static void count_field(const char *path, const char *type, const char *dflt, const char *help,
                        bool fixed, void *arg) {
    int *n = arg;
    assert_true(strchr(path, '.') && *type && *dflt && *help);
    if (strcmp(path, "train.steps") == 0)
        assert_string_equal(dflt, "(required)");
    if (strcmp(path, "train.dropout.ffn") == 0)
        assert_string_equal(type, "number >= 0 and < 1");
    if (strcmp(path, "run.seed") == 0 || strcmp(path, "train.lr") == 0)
        assert_int_equal(fixed, path[0] == 'r');
    (*n)++;
}

static void help_has_every_field(void **state) {
    (void)state;
    int n = 0;
    tsr_run_fields_each(count_field, &n);
    assert_int_equal(n, 61);
}

static void nearest(void **state) {
    (void)state;
    const char *known[] = {"steps", "global_batch", "lr", "min_lr"};
    assert_string_equal(tsr_nearest("setps", known, 4), "steps");
    assert_string_equal(tsr_nearest("GLOBAL-BATCH", known, 4), "global_batch");
    assert_string_equal(tsr_nearest("globalbatch", known, 4), "global_batch");
    assert_string_equal(tsr_nearest("minlr", known, 4), "min_lr");
    assert_null(tsr_nearest("tokenizer", known, 4));
    assert_null(tsr_nearest("xy", known, 4));
    assert_null(tsr_nearest("", known, 4));
    assert_null(tsr_nearest("steps", known, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),          cmocka_unit_test(every_field),
        cmocka_unit_test(dump_round_trip),   cmocka_unit_test(all_mistakes_at_once),
        cmocka_unit_test(wrong_values),      cmocka_unit_test(not_utf8),
        cmocka_unit_test(aliases_and_depth), cmocka_unit_test(many_mistakes_are_counted),
        cmocka_unit_test(overrides_win),     cmocka_unit_test(wrong_overrides),
        cmocka_unit_test(missing_file),      cmocka_unit_test(help_has_every_field),
        cmocka_unit_test(nearest),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
