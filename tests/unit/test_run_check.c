#include "tests/unit/run_file.h"

#include "core/model.h"
#include "core/pieces.h"

#ifndef TESSERA_GOLDEN_DIR
#define TESSERA_GOLDEN_DIR "tests/golden"
#endif

static void model_is_given_once(void **state) {
    (void)state;
    expect_mistakes("train: {steps: 1}", NULL, PIECES("exactly one of model.from", "found none"));
    expect_mistakes("model: {preset: gpt2, config: {model_type: gpt2}}\ntrain: {steps: 1}", NULL,
                    PIECES("run.yaml:1:31: model: expected exactly one", "preset config"));
    expect_mistakes("model: {from: x, preset: gpt2}\ntrain: {steps: 1}", NULL,
                    PIECES("found from preset"));
    expect_mistakes("model: {preset: zzzzzzzzzzzzz}\ntrain: {steps: 1}", NULL,
                    PIECES("unknown preset", "gpt2", "tiny-llama"));
    // A model that is wrong itself isn't reported a second time.
    expect_mistakes("model: {config: 5}\ntrain: {steps: 1}", NULL,
                    PIECES("model.config: expected"));
    assert_null(strstr(tsr_error_text(), "exactly one"));
}

static void tokenizer_comes_with_the_model(void **state) {
    (void)state;
    char path[TSR_PATH_MAX];
    tsr_path_join(path, test_dir, "tokenizer.json");
    assert_int_equal(tsr_write_file_durable(path, "{}", 2), 0);
    struct tsr_run r = load_good("model: {from: .}\ndata: {train: a.txt}\ntrain: {steps: 1}", NULL);
    assert_non_null(r.model.tokenizer);
    assert_string_equal(r.model.tokenizer, r.model.from);
    tsr_run_free(&r);
    expect_mistakes("model: {preset: gpt2}\ndata: {train: [a.bin, a.txt]}\ntrain: {steps: 1}", NULL,
                    PIECES("run.yaml:2:15: data.train: text", "needs a model.tokenizer"));
    expect_mistakes("model: {preset: gpt2}\ndata: {train: a, valid: b.jsonl}\ntrain: {steps: 1}",
                    NULL, PIECES("data.valid: text"));
}

static void numbers_that_span_fields(void **state) {
    (void)state;
    static const struct {
        const char *override, *piece;
    } cases[] = {
        {"train.warmup=11", "train.warmup: expected at most train.steps (10), found 11"},
        {"train={schedule: wsd, warmup: 5, decay: 6}", "train.decay: expected at most"},
        {"train.spike={grad_norm: 1}", "spike.grad_norm: expected 0 or a number > 1, found 1"},
        {"train.spike={loss: 0.5}", "train.spike.loss: expected 0 or a number > 1, found 0.5"},
        {"train.on_nonfinite=rollback", "train.on_nonfinite: rollback needs periodic checkpoints"},
        {"train.spike={loss: 2, action: rollback}",
         "train.spike.action: rollback needs periodic checkpoints: set checkpoint.every"},
        {"train.spike={action: rollback}", NULL}, // but spikes aren't looked for
        {"train.spike={loss: 1.5, grad_norm: 2, action: stop}", NULL},
        {"train.min_lr=0.1", "train.min_lr: expected at most train.lr (0.0003), found 0.1"},
        {"train.precision=bf16", NULL}, // if `auto` finds a device
        {"train={precision: bf16, stochastic_rounding: true}", NULL},
        {"train.stochastic_rounding=false", NULL},
        {"train.stochastic_rounding=true",
         "train.stochastic_rounding: needs train.precision: bf16"},
        {"train.stochastic_rounding=1", "train.stochastic_rounding: expected true|false, found 1"},
        {"device.backend=cuda", NULL},
        {"parallel.schedule=interleaved", "at least 2 chunks, found 1"},
        {"parallel.tp=3", "tp can be 1, 2, 4, 8, or set parallel.virtual_shards to 12"},
        {"parallel.tp=16", "tp can be 1, 2, 4, 8, or set parallel.virtual_shards to 16"},
        {"parallel={virtual_shards: 24, tp: 4}", "tp can be 1, 3, 6, 12, 24,"},
        {"parallel.virtual_replicas=3", "make it a multiple of 3"},
        {"parallel.dp=3", "dp can be 1, 2, 4, 8, or make train.global_batch a multiple of 3"},
        {"{train: 1}=2", "unknown key"},
        {"train.micro_batch=3", "8 sequences of a rank in pieces of 1: it can be 1, 2, 4, 8"},
        {"train.micro_batch=16", "it can be 1, 2, 4, 8"},
        {"train={global_batch: 16, micro_batch: 4, lr: 1}", NULL},
        {"train={global_batch: 24, micro_batch: 3, lr: 1}", NULL},
        {"train={global_batch: 24, micro_batch: 2}", "in pieces of 3: it can be 1, 3, 6, 12, 24"},
        {"parallel={dp: 4}", NULL},
        {"parallel={dp: 4, exact: false, tp: 3}", NULL},
        {"parallel={dp: 3, exact: false}", "one per data-parallel rank"},
        {"data={seq_len: 1000000000}", NULL},
        {"parallel={schedule: interleaved, chunks: 2, pp: 3, dp: 1}",
         "interleaved needs parallel.pp (3) to divide the number of micro-batches of a rank (8)"},
        {"parallel={schedule: interleaved, chunks: 2, pp: 4, dp: 4}",
         "micro-batches of a rank (2): raise train.global_batch"},
        {"parallel={schedule: interleaved, chunks: 2, pp: 4, dp: 1}", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const *overrides = OVERRIDES(cases[i].override);
        if (cases[i].piece) {
            expect_mistakes(MINIMAL, overrides, PIECES(cases[i].piece));
        } else {
            struct tsr_run r = load_good(MINIMAL, overrides);
            tsr_run_free(&r);
        }
    }
    expect_mistakes(MINIMAL, OVERRIDES("train.precision=bf16", "device.backend=cpu"),
                    PIECES("train.precision: bf16 needs a CUDA device", "use fp32"));
    expect_mistakes(MINIMAL, OVERRIDES("data.seq_len=1000000000", "train.micro_batch=4"),
                    PIECES("at most 2^31 - 1 tokens"));
    expect_mistakes(MINIMAL, OVERRIDES("train={global_batch: 12}", "parallel={dp: 3}"),
                    PIECES("dp can be 1, 2, 4, or set parallel.virtual_replicas to 12"));
}

static void layouts_to_go_on_with(void **state) {
    (void)state;
    static const char base[] = "model: {preset: gpt2}\ntrain: {steps: 1}\nparallel: {tp: 2, "
                               "elastic: [{tp: 1, dp: 4}, {pp: 2}]}";
    struct tsr_run r = load_good(base, NULL);
    assert_int_equal(r.parallel.elastic.n, 2);
    assert_int_equal(r.parallel.elastic.items[0].dp, 4);
    assert_int_equal(r.parallel.elastic.items[1].tp, 1);
    assert_int_equal(r.parallel.elastic.items[1].pp, 2);
    struct tsr_buf yaml = {0};
    assert_int_equal(tsr_run_dump(&r, &yaml), 0);
    assert_non_null(strstr(yaml.data, "elastic: [{tp: 1, pp: 1, dp: 4}, {tp: 1, pp: 2, dp: 1}]"));
    tsr_buf_free(&yaml);
    tsr_run_free(&r);
    expect_mistakes(base, PIECES("parallel.exact=false"),
                    PIECES("parallel.elastic: needs parallel.exact"));
    expect_mistakes(base, PIECES("parallel.elastic=[{tp: 3}]"),
                    PIECES("parallel.elastic: layout 1 (tp 3, pp 1, dp 1): ", "tp can be"));
    expect_mistakes(base, PIECES("parallel.elastic=[{tp: 0}]"),
                    PIECES("tp: expected an integer from 1"));
    expect_mistakes(base, PIECES("parallel.elastic=[{tq: 1}]"),
                    PIECES("tq: unknown key; did you mean tp?"));
    expect_mistakes(base, PIECES("parallel.elastic=[5]"), PIECES("expected list of {tp, pp, dp}"));
    expect_mistakes(base, PIECES("parallel.elastic=4"), PIECES("expected list of {tp, pp, dp}"));
}

// A rule is silent about a field that was a mistake already.
static void no_second_report(void **state) {
    (void)state;
    expect_mistakes(MINIMAL, OVERRIDES("train.lr=x", "train.min_lr=1"),
                    PIECES("train.lr: expected"));
    assert_null(strstr(tsr_error_text(), "min_lr"));
    expect_mistakes("model: {preset: gpt2}\ntrain: {steps: no, warmup: 9, micro_batch: no}", NULL,
                    PIECES("train.steps: expected", "train.micro_batch: expected"));
    assert_null(strstr(tsr_error_text(), "warmup"));
    assert_null(strstr(tsr_error_text(), "missing"));
}

static void chunks_belong_to_interleaved(void **state) {
    (void)state;
    struct tsr_run r = load_good(MINIMAL, OVERRIDES("parallel.chunks=2", "parallel.pp=2"));
    assert_int_equal(r.parallel.chunks, 1);
    tsr_run_free(&r);
}

static void shards(void **state) {
    (void)state;
    static const int defaults[][2] = {{1, 1}, {2, 2},  {3, 1},  {4, 4},  {6, 2},
                                      {8, 8}, {12, 4}, {16, 8}, {24, 8}, {64, 8}};
    struct tsr_run r = load_good(MINIMAL, NULL);
    int V, W;
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++) {
        r.train.global_batch = defaults[i][0];
        assert_int_equal(tsr_run_shards(&r, 1, 1, &V, &W), 0);
        assert_int_equal(V, 8);
        assert_int_equal(W, defaults[i][1]);
    }
    r.train.global_batch = 48;
    r.parallel.virtual_shards = 24;
    r.parallel.virtual_replicas = 12;
    for (int n = 1; n <= 24; n++) {
        bool fits_tp = n == 1 || (24 % n == 0 && tsr_is_pow2(24 / n));
        bool fits_dp = n == 1 || (12 % n == 0 && tsr_is_pow2(12 / n));
        assert_int_equal(tsr_run_shards(&r, n, 3, &V, &W) == 0, fits_tp);
        assert_int_equal(tsr_run_shards(&r, 3, n, &V, &W) == 0, fits_dp);
    }
    static const int whole_subtrees[] = {1, 2, 4, 8, 16, 48};
    for (int micro = 1, i = 0; micro <= 48; micro++) { // of 12 pieces of 4
        bool fits = i < 6 && micro == whole_subtrees[i];
        r.train.micro_batch = micro;
        assert_int_equal(tsr_run_shards(&r, 3, 1, &V, &W) == 0, fits);
        i += fits;
    }
    r.train.micro_batch = 1;
    r.parallel.exact = false;
    assert_int_equal(tsr_run_shards(&r, 5, 16, &V, &W), 0);
    assert_int_equal(V, 5);
    assert_int_equal(W, 16);
    assert_int_equal(tsr_run_shards(&r, 5, 5, &V, &W), TSR_ECONFIG);
    tsr_run_free(&r);
}

// Against the rule said in another way: ranks' batches fall into micro-batches, and no boundary of
// a micro-batch or a piece cuts across one of the other kind.
static void micro_batches(void **state) {
    (void)state;
    struct tsr_run r = load_good(MINIMAL, NULL);
    for (int batch = 1; batch <= 48; batch++) {
        for (int micro = 1; micro <= batch + 1; micro++) {
            for (int dp = 1; dp <= 8; dp *= 2) {
                int V, W = 8;
                r.train.global_batch = batch;
                r.train.micro_batch = micro;
                while (batch % W)
                    W /= 2;
                bool good = dp <= W && batch / dp % micro == 0;
                for (int edge = 0; good && edge < batch / dp; edge += micro) {
                    int piece = batch / W, end = edge + micro;
                    bool inside = edge / piece == (end - 1) / piece;
                    good = inside || (edge % piece == 0 && end % piece == 0);
                }
                int found;
                assert_int_equal(tsr_run_shards(&r, 1, dp, &V, &found) == 0, good);
            }
        }
    }
    tsr_run_free(&r);
}

static void world(void **state) {
    (void)state;
    int64_t dp;
    struct tsr_run r = load_good(MINIMAL, OVERRIDES("parallel={tp: 2, pp: 2}"));
    assert_int_equal(tsr_run_check_world(&r, 8, &dp), 0);
    assert_int_equal(dp, 2);
    assert_int_equal(tsr_run_check_world(&r, 6, &dp), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "multiple of tp * pp = 2 * 2 = 4 ranks, found 6"));
    assert_int_equal(tsr_run_check_world(&r, 1, &dp), TSR_ECONFIG);
    assert_int_equal(tsr_run_check_world(&r, 0, &dp), TSR_ECONFIG);
    assert_int_equal(tsr_run_check_world(&r, 12, &dp), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "parallel.dp: 3 ranks"));
    r.parallel.dp = 1;
    assert_int_equal(tsr_run_check_world(&r, 8, &dp), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "2 * 2 * 1 = 4 ranks, found 8"));
    r.parallel.schedule = TSR_PIPE_INTERLEAVED;
    r.parallel.pp = 3;
    assert_int_equal(tsr_run_check_world(&r, 6, &dp), TSR_ECONFIG);
    tsr_run_free(&r);
}

static void model_against_run(void **state) {
    (void)state;
    struct tsr_run r = load_good(MINIMAL, NULL);
    struct tsr_model m;
    assert_int_equal(tsr_model_parse(&m, tsr_preset_json("tiny-gpt"), "tiny-gpt"), 0);
    r.data.seq_len = m.max_positions;
    assert_int_equal(tsr_run_check_model(&r, &m, 8, 4), 0);
    assert_int_equal(tsr_run_check_model(&r, &m, 9, 1), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "9 ranks can't share 8 heads"));
    assert_int_equal(tsr_run_check_model(&r, &m, 1, 5), TSR_ECONFIG);
    r.parallel.chunks = 2;
    assert_int_equal(tsr_run_check_model(&r, &m, 1, 2), 0);
    assert_int_equal(tsr_run_check_model(&r, &m, 1, 3), TSR_ECONFIG);
    r.data.seq_len++;
    assert_int_equal(tsr_run_check_model(&r, &m, 1, 1), TSR_ECONFIG);
    tsr_model_free(&m);
    assert_int_equal(tsr_model_parse(&m, tsr_preset_json("tiny-llama"), "tiny-llama"), 0);
    r.data.seq_len = 100000; // rotary positions have no end
    assert_int_equal(tsr_run_check_model(&r, &m, 1, 1), 0);
    tsr_model_free(&m);
    tsr_run_free(&r);
}

static int resume_with(const char *old, const char *const *old_o, const char *now,
                       const char *const *now_o) {
    struct tsr_run a = load_good(old, old_o), b = load_good(now, now_o);
    struct tsr_buf stamp = {0};
    assert_int_equal(tsr_run_dump(&a, &stamp), 0);
    int rc = tsr_run_check_resume(&b, stamp.data, "step-00000050");
    tsr_buf_free(&stamp);
    tsr_run_free(&a);
    tsr_run_free(&b);
    return rc;
}

static void resuming(void **state) {
    (void)state;
    static const char *const fixed[] = {
        "run.seed=7",           "model.preset=tiny-gpt",      "data.seq_len=7",
        "data.shuffle=false",   "data.packing=isolated",      "train.global_batch=16",
        "parallel.exact=false", "parallel.virtual_shards=16", "parallel.virtual_replicas=4"};
    static const char *const free_fields[] = {"train.steps=99",
                                              "train.lr=1e-5",
                                              "parallel={tp: 2, pp: 2, dp: 2}",
                                              "run.dir=/x",
                                              "train.micro_batch=2",
                                              "device.threads=3",
                                              "data.train=[z.bin]",
                                              "train.recompute=full",
                                              "train.on_nonfinite=stop",
                                              "train.max_skips=0",
                                              "train.spike={loss: 2, grad_norm: 3, window: 5}",
                                              "parallel.virtual_shards=8", // what 0 comes to
                                              "parallel.virtual_replicas=8"};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        const char *dot = strchr(fixed[i], '=');
        char name[60];
        snprintf(name, sizeof name, "step-00000050: %.*s can't change", (int)(dot - fixed[i]),
                 fixed[i]);
        assert_int_equal(resume_with(MINIMAL, NULL, MINIMAL, OVERRIDES(fixed[i])), TSR_ECONFIG);
        if (!strstr(tsr_error_text(), name))
            fail_msg("expected \"%s\" in: %s", name, tsr_error_text());
    }
    for (size_t i = 0; i < sizeof free_fields / sizeof free_fields[0]; i++)
        if (resume_with(MINIMAL, NULL, MINIMAL, OVERRIDES(free_fields[i])) != 0)
            fail_msg("%s: %s", free_fields[i], tsr_error_text());
    // A configuration is compared as a value, not as text.
    assert_int_equal(
        resume_with("model: {config: {model_type: gpt2, n_layer: 2}}\ntrain: {steps: 1}", NULL,
                    "model: {config: {n_layer: 2, model_type: gpt2}}\ntrain: {steps: 1}", NULL),
        0);
    struct tsr_run r = load_good(MINIMAL, NULL);
    assert_int_equal(tsr_run_check_resume(&r, "train: {stepz: 1}", "x"), TSR_ECONFIG);
    assert_int_equal(tsr_run_check_resume(&r, "", "x"), TSR_ECONFIG);
    tsr_run_free(&r);
}

// The run files that come with the project fit themselves, their models and their ranks.
static void shipped_run_files(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int world;
    } files[] = {{"tiny-llama-kjv", 4}, {"tiny-gpt-kjv", 1}, {"gpt2-124m", 8}, {"llama3.1-8b", 64}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[TSR_PATH_MAX];
        struct tsr_run r;
        struct tsr_model m;
        int64_t dp;
        snprintf(path, sizeof path, "%s/../../configs/%s.yaml", TESSERA_GOLDEN_DIR, files[i].name);
        if (tsr_run_load(&r, path, NULL, 0) != 0 ||
            tsr_run_check_world(&r, files[i].world, &dp) != 0)
            fail_msg("%s: %s", path, tsr_error_text());
        const char *shape = r.model.preset ? r.model.preset : "llama3.1-8b";
        assert_int_equal(tsr_model_parse(&m, tsr_preset_json(shape), shape), 0);
        if (tsr_run_check_model(&r, &m, r.parallel.tp, r.parallel.pp) != 0)
            fail_msg("%s: %s", path, tsr_error_text());
        assert_string_equal(r.run.name, files[i].name);
        tsr_model_free(&m);
        tsr_run_free(&r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_is_given_once),
        cmocka_unit_test(tokenizer_comes_with_the_model),
        cmocka_unit_test(numbers_that_span_fields),
        cmocka_unit_test(layouts_to_go_on_with),
        cmocka_unit_test(no_second_report),
        cmocka_unit_test(chunks_belong_to_interleaved),
        cmocka_unit_test(shards),
        cmocka_unit_test(micro_batches),
        cmocka_unit_test(world),
        cmocka_unit_test(model_against_run),
        cmocka_unit_test(resuming),
        cmocka_unit_test(shipped_run_files),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
