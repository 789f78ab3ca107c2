// Planning: ranks of equal shape really hold the same, the formulas of what is sent agree with what
// the calls of a step count, and a model of 405 billion parameters is planned on an ordinary
// machine.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/plan.h"
#include "dist/traffic.h"
#include "scratch.h"

#define LLAMA                                                                                      \
    "model_type: llama, hidden_size: 64, num_hidden_layers: 4, vocab_size: 320, "                  \
    "num_attention_heads: 8, num_key_value_heads: 4, intermediate_size: 128"
#define SHARED_KV                                                                                  \
    "model_type: llama, hidden_size: 72, num_hidden_layers: 5, vocab_size: 307, "                  \
    "num_attention_heads: 9, num_key_value_heads: 3, intermediate_size: 91, attention_bias: "      \
    "true, "                                                                                       \
    "mlp_bias: true, tie_word_embeddings: false"
#define GPT2 "model_type: gpt2, n_embd: 64, n_layer: 4, n_head: 8, n_positions: 24, vocab_size: 307"
#define GPT1                                                                                       \
    "model_type: openai-gpt, n_embd: 64, n_layer: 4, n_head: 8, n_positions: 24, vocab_size: 307"

struct planned {
    struct tsr_run run;
    struct tsr_model model;
    struct tsr_mesh mesh;
    struct tsr_plan_opt opt;
};

struct layout {
    int tp, pp, dp, chunks;
    bool sequence;
    const char *recompute;
};

static void set_up(struct planned *p, const char *model, struct layout l, const char *extra) {
    char text[2048];
    const char *path = scratch("run.yaml");
    snprintf(text, sizeof text,
             "model: {config: {%s}}\ndata: {seq_len: 20}\n"
             "train: {steps: 1, global_batch: 16, micro_batch: 2, recompute: %s}\n"
             "parallel: {tp: %d, pp: %d, dp: %d, sequence: %s, schedule: %s, chunks: %d%s}\n",
             model, l.recompute, l.tp, l.pp, l.dp, l.sequence ? "true" : "false",
             l.chunks > 1 ? "interleaved" : "1f1b", l.chunks, extra);
    scratch_write(path, text, strlen(text));
    if (tsr_run_load(&p->run, path, NULL, 0) < 0)
        fail_msg("%s", tsr_error_text());
    int V, W;
    assert_int_equal(tsr_run_shards(&p->run, l.tp, l.dp, &V, &W), 0);
    assert_int_equal(tsr_model_parse(&p->model, p->run.model.config, "test"), 0);
    tsr_mesh_place(&p->mesh, l.tp, l.pp, l.dp, 0);
    p->mesh.chunks = l.chunks;
    p->mesh.V = V;
    p->mesh.W = W;
    p->opt = (struct tsr_plan_opt){.threads = 2, .per_host = l.tp * l.pp * l.dp};
}

static void tear_down(struct planned *p) {
    tsr_model_free(&p->model);
    tsr_run_free(&p->run);
}

static void check_ranks(struct planned *p) {
    struct tsr_plan plan;
    if (tsr_plan_open(&plan, &p->run, &p->model, &p->mesh, &p->opt) < 0)
        fail_msg("%s", tsr_error_text());
    int counted = 0;
    for (int k = 0; k < plan.n_classes; k++)
        counted += plan.classes[k].n_ranks;
    assert_int_equal(counted, plan.mesh.world);
    uint64_t sent[TSR_N_TRAFFIC] = {0};
    for (int r = 0; r < plan.mesh.world; r++) {
        struct tsr_memory alone;
        uint64_t mine[TSR_N_TRAFFIC];
        assert_int_equal(tsr_plan_rank(&alone, mine, &p->run, &p->model, &p->mesh, r, &p->opt), 0);
        const struct tsr_memory *of_class = &plan.classes[plan.class_of[r]].memory;
        for (int i = 0; i < TSR_N_MEMORY; i++)
            assert_int_equal(tsr_memory_get(&alone, i), tsr_memory_get(of_class, i));
        for (int i = 0; i < TSR_N_TRAFFIC; i++)
            sent[i] += mine[i];
        assert_int_equal(plan.classes[plan.class_of[r]].total, tsr_memory_total(&alone));
    }
    for (int k = 0; k < plan.n_classes; k++)
        assert_true(tsr_plan_largest(&plan)->total >= plan.classes[k].total);
    struct tsr_step_bytes t;
    assert_int_equal(tsr_traffic_of(&t, &p->run, &p->model, &p->mesh), 0);
    assert_int_equal(t.tp, sent[TSR_TRAFFIC_TP]);
    assert_int_equal(t.pp, sent[TSR_TRAFFIC_PP]);
    assert_int_equal(t.dp, sent[TSR_TRAFFIC_DP]);
    tsr_plan_close(&plan);
}

static void test_every_rank_as_its_class(void **state) {
    (void)state;
    static const struct layout layouts[] = {
        {1, 1, 1, 1, false, "none"},     {2, 2, 2, 1, true, "none"},
        {4, 2, 1, 1, false, "full"},     {8, 1, 1, 1, true, "selective"},
        {2, 2, 1, 2, false, "none"},     {1, 4, 2, 1, false, "selective"},
        {1, 1, 8, 1, false, "none"},     {4, 1, 2, 1, true, "full"},
        {1, 2, 4, 2, false, "selective"}};
    static const char *const models[] = {LLAMA, SHARED_KV, GPT2, GPT1};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
            struct planned p;
            set_up(&p, models[m], layouts[i], "");
            check_ranks(&p);
            p.opt.per_host = 3; // groups that cross hosts meet by messages
            check_ranks(&p);
            p.run.train.precision = TSR_BF16;
            check_ranks(&p);
            tear_down(&p);
        }
}

// In bf16 the layers' weights take half, and each data-parallel rank has fp32 masters of its part.
static void test_precision(void **state) {
    (void)state;
    struct planned p;
    struct tsr_memory wide, narrow;
    set_up(&p, LLAMA, (struct layout){2, 1, 2, 1, false, "none"}, "");
    assert_int_equal(tsr_plan_rank(&wide, NULL, &p.run, &p.model, &p.mesh, 0, &p.opt), 0);
    p.run.train.precision = TSR_BF16;
    assert_int_equal(tsr_plan_rank(&narrow, NULL, &p.run, &p.model, &p.mesh, 0, &p.opt), 0);
    assert_int_equal(wide.masters, 0);
    assert_int_equal(2 * narrow.weights, wide.weights);
    assert_int_equal(2 * narrow.masters, narrow.moments); // no frozen tensors
    assert_int_equal(narrow.gradients, wide.gradients);
    assert_int_equal(narrow.moments, wide.moments);
    assert_true(10 * narrow.activations < 6 * wide.activations); // statistics stay fp32
    tear_down(&p);
}

static void test_inexact(void **state) {
    (void)state;
    struct planned p;
    set_up(&p, LLAMA, (struct layout){2, 1, 2, 1, false, "none"}, ", exact: false");
    check_ranks(&p);
    tear_down(&p);
}

// Fewer virtual replicas than ranks could hold means fewer gradient buffers.
static void test_replicas_cost_gradients(void **state) {
    (void)state;
    struct planned p;
    struct tsr_memory many, few;
    struct layout one = {1, 1, 1, 1, false, "none"};
    set_up(&p, LLAMA, one, "");
    assert_int_equal(tsr_plan_rank(&many, NULL, &p.run, &p.model, &p.mesh, 0, &p.opt), 0);
    tear_down(&p);
    set_up(&p, LLAMA, one, ", virtual_replicas: 1");
    assert_int_equal(tsr_plan_rank(&few, NULL, &p.run, &p.model, &p.mesh, 0, &p.opt), 0);
    assert_true(many.gradients == 4 * few.gradients); // log2(8) + 1 levels
    assert_true(many.weights == few.weights);
    assert_true(few.snapshot > 0);
    p.run.checkpoint.async = false;
    assert_int_equal(tsr_plan_rank(&many, NULL, &p.run, &p.model, &p.mesh, 0, &p.opt), 0);
    assert_int_equal(many.snapshot, 0);
    assert_int_equal(tsr_memory_total(&many), tsr_memory_total(&few) - few.snapshot);
    p.run.train.precision = TSR_BF16; // what comes from a device needs a place on the host
    assert_int_equal(tsr_plan_rank(&many, NULL, &p.run, &p.model, &p.mesh, 0, &p.opt), 0);
    assert_true(many.snapshot > 0 && many.snapshot < few.snapshot);
    tear_down(&p);
}

static void test_limits(void **state) {
    (void)state;
    struct planned p;
    struct tsr_plan plan;
    set_up(&p, LLAMA, (struct layout){1, 1, 1, 1, false, "none"}, "");
    p.mesh.dp = 512;
    p.mesh.world = 512;
    p.mesh.W = 512;
    assert_int_equal(tsr_plan_open(&plan, &p.run, &p.model, &p.mesh, &p.opt), TSR_ECONFIG);
    assert_non_null(strstr(tsr_error_text(), "dp of at most 256"));
    tear_down(&p);
}

static void test_large(void **state) {
    (void)state;
    struct planned p;
    struct tsr_plan plan;
    set_up(&p, LLAMA, (struct layout){8, 4, 4, 1, true, "full"}, "");
    tsr_model_free(&p.model);
    assert_int_equal(tsr_model_parse(&p.model, tsr_preset_json("llama3.1-405b"), "llama3.1-405b"),
                     0);
    p.run.data.seq_len = 8192;
    p.run.train.global_batch = 64;
    p.run.train.micro_batch = 1;
    tsr_mesh_place(&p.mesh, 8, 16, 4, 0);
    p.mesh.V = 8;
    p.mesh.W = 8;
    p.opt.per_host = 8;
    double begin = tsr_now();
    if (tsr_plan_open(&plan, &p.run, &p.model, &p.mesh, &p.opt) < 0)
        fail_msg("%s", tsr_error_text());
    print_message("512 ranks in %d classes, %.2f s\n", plan.n_classes, tsr_now() - begin);
    assert_in_range(plan.n_classes, 2, 128);
    // 405.9e9 parameters: fp32 weights are held by each of the 4 copies.
    double weights = 0;
    for (int r = 0; r < plan.mesh.world; r++)
        weights += (double)plan.classes[plan.class_of[r]].memory.weights;
    assert_true(weights > 4 * 4 * 405.8e9 && weights < 4 * 4 * 406.1e9);
    tsr_plan_close(&plan);
    tear_down(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_rank_as_its_class),
        cmocka_unit_test(test_precision),
        cmocka_unit_test(test_inexact),
        cmocka_unit_test(test_replicas_cost_gradients),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
