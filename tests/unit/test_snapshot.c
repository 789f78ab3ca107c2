// State on its way between layouts: every rank of a layout writes its snapshot, and every rank of
// another loads it, for all ordered pairs. All ranks live in this process, one after another, on a
// transport that only pretends.
#include "tests/unit/checkpoint_support.h"

#include "core/checkpoint_private.h"
#include "dist/snapshot.h"
#include "dist/store.h"
#include "launcher/coordinator/shard_map.h"
#include "launcher/saver_map.h"

struct parallel {
    int tp, pp, dp, chunks;
};

static const struct parallel layouts[] = {{1, 1, 1, 1}, {2, 1, 1, 1}, {1, 2, 1, 2}, {1, 1, 2, 1},
                                          {2, 2, 2, 1}, {4, 2, 1, 1}, {8, 1, 1, 1}, {1, 1, 8, 1}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

static const char odd_llama[] = // 5 heads and 1 KV head: copies of it on every rank
    "{\"model_type\":\"llama\",\"num_hidden_layers\":4,\"hidden_size\":20,"
    "\"intermediate_size\":37,\"num_attention_heads\":5,\"num_key_value_heads\":1,"
    "\"vocab_size\":23,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,"
    "\"attention_bias\":true,\"tie_word_embeddings\":true}";
static const char sinusoidal_gpt2[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":4,\"n_embd\":16,\"n_head\":4,\"n_positions\":6,"
    "\"vocab_size\":11,\"activation_function\":\"gelu_new\",\"position\":\"sinusoidal\"}";

static struct fixture x;
static struct tsr_ctx ctx, narrow; // narrow: the same with bf16 layers, fp32 masters
static struct tsr_progress progress;

// ---- one rank

struct rank {
    struct tsr_comm comm;
    struct tsr_net net;
};

static int world_of(const struct parallel *l) {
    return l->tp * l->pp * l->dp;
}

static void open_rank(struct rank *r, struct tsr_ctx *device, const struct parallel *l, int rank) {
    struct tsr_mesh mesh;
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1, .seed = 1};
    memset(r, 0, sizeof *r);
    expect_ok(tsr_comm_open_pretend(&r->comm, world_of(l), rank, 8, false));
    r->comm.progress = &progress;
    tsr_mesh_place(&mesh, l->tp, l->pp, l->dp, rank);
    mesh.chunks = l->chunks;
    mesh.V = mesh.W = 8;
    expect_ok(tsr_net_open(&r->net, device, &r->comm, &mesh, &x.model, &opt, 16));
}

static void close_rank(struct rank *r) {
    tsr_net_close(&r->net);
    tsr_comm_close(&r->comm);
}

static struct rank ranks[N_LAYOUTS][8];

static void open_ranks(struct tsr_ctx *device) {
    x.opt.dtype = device->dtype;
    for (int l = 0; l < N_LAYOUTS; l++)
        for (int i = 0; i < world_of(&layouts[l]); i++)
            open_rank(&ranks[l][i], device, &layouts[l], i);
}

static void close_ranks(void) {
    for (int l = 0; l < N_LAYOUTS; l++)
        for (int i = 0; i < world_of(&layouts[l]); i++)
            close_rank(&ranks[l][i]);
}

static int start(const char *json, bool bf16) {
    open_fixture(&x, json);
    x.opt.max_file_bytes = 0;
    x.opt.range_bytes = 4096;
    expect_ok(tsr_cpu_open(&ctx, NULL, 1));
    narrow = ctx;
    narrow.dtype = TSR_DT_BF16;
    open_ranks(bf16 ? &narrow : &ctx);
    return 0;
}

static int start_llama(void **state) {
    (void)state;
    return start(odd_llama, false);
}

static int start_llama_bf16(void **state) {
    (void)state;
    return start(odd_llama, true);
}

static int start_gpt2(void **state) {
    (void)state;
    return start(sinusoidal_gpt2, false);
}

static int start_gpt2_bf16(void **state) {
    (void)state;
    return start(sinusoidal_gpt2, true);
}

static int finish(void **state) {
    (void)state;
    close_ranks();
    ctx.ops->close(&ctx);
    close_fixture(&x);
    return 0;
}

// Another whole number for each element of each part.
static float value_of(int part, const struct tsr_tensor *t, int64_t r, int64_t c) {
    int64_t id = (t->layer + 1) * TSR_N_KINDS + (int64_t)t->kind;
    return (float)((id * 2048 + r * t->cols + c) * 3 + part);
}

static float rounded(float f) {
    return tsr_bf16_to_f32(tsr_f32_to_bf16(f));
}

// Calls fn for every element that the rank holds of weights, of its own masters and moments.
typedef void (*element_fn)(float *have, float want, const struct tsr_tensor *t);

static void each_part(struct tsr_param *p, int part, float *at, int64_t lo, int64_t hi,
                      element_fn fn) {
    for (int64_t r = lo; r < hi; r++)
        for (int64_t c = 0; c < p->cols; c++)
            fn(at++, value_of(part, p->t, p->held.r0 + r, p->held.c0 + c), p->t);
}

static void each_weight(struct tsr_param *p, element_fn fn) {
    uint16_t *w = p->w;
    if (!p->master) {
        each_part(p, TSR_CKPT_WEIGHTS, p->w, 0, p->rows, fn);
        return;
    }
    for (int64_t i = 0; i < p->rows * p->cols; i++) {
        int64_t r = p->held.r0 + i / p->cols, c = p->held.c0 + i % p->cols;
        float have = tsr_bf16_to_f32(w[i]);
        fn(&have, rounded(value_of(TSR_CKPT_WEIGHTS, p->t, r, c)), p->t);
        w[i] = tsr_f32_to_bf16(have);
    }
    int64_t at = 0;
    for (int s = 0; s < p->n_slices; s++) {
        each_part(p, TSR_CKPT_WEIGHTS, p->master + at, p->slices[s].lo, p->slices[s].hi, fn);
        at += tsr_range_len(p->slices[s]) * p->cols;
    }
    assert_true(at == p->n_own);
}

static void each_element(struct tsr_net *net, element_fn fn) {
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        int64_t at = 0;
        if (p->alias)
            continue;
        assert_true(!p->master == (net->ctx->dtype == TSR_DT_F32));
        each_weight(p, fn);
        for (int s = 0; p->sum != TSR_GRAD_NONE && s < p->n_slices; s++) {
            each_part(p, TSR_CKPT_M, p->m + at, p->slices[s].lo, p->slices[s].hi, fn);
            each_part(p, TSR_CKPT_V, p->v + at, p->slices[s].lo, p->slices[s].hi, fn);
            at += tsr_range_len(p->slices[s]) * p->cols;
        }
    }
}

static void put(float *have, float want, const struct tsr_tensor *t) {
    (void)t;
    *have = want;
}

static void spoil(float *have, float want, const struct tsr_tensor *t) {
    (void)want;
    (void)t;
    *have = 1e30f;
}

static void check(float *have, float want, const struct tsr_tensor *t) {
    if (*have != want)
        fail_msg("%s: expected %.9g, found %.9g", t->name, want, *have);
}

// ---- saving and loading in a layout

static int some_memory(struct tsr_ctx *device, size_t *free_bytes, size_t *total_bytes) {
    (void)device;
    *free_bytes = *total_bytes = 1 << 30;
    return 0;
}

// Without a second buffer; `apart`: as from a device whose memory isn't the host's.
static void save_direct(struct rank *r, struct tsr_checkpoint *c, bool apart) {
    struct tsr_snapshot *s;
    struct tsr_ctx device = *r->net.ctx, *before = r->net.ctx;
    struct tsr_ops ops = *device.ops;
    ops.memory = apart ? some_memory : NULL;
    device.ops = &ops;
    r->net.ctx = &device;
    expect_ok(tsr_snapshot_open_direct(&s, &r->net));
    for (int again = 0; again < 2; again++) {
        each_element(&r->net, put);
        expect_ok(tsr_snapshot_take(s));
        if (again)
            expect_ok(tsr_snapshot_write(s, c));
        each_element(&r->net, spoil);
    }
    assert_int_equal(tsr_snapshot_direct_bytes(&r->net, false), 0);
    assert_true(tsr_snapshot_direct_bytes(&r->net, true) < tsr_snapshot_bytes(&r->net));
    tsr_snapshot_close(s);
    r->net.ctx = before;
}

// Copied, trained on (the net changes), written.
static void save_rank(struct rank *r, struct tsr_checkpoint *c) {
    struct tsr_snapshot *s;
    expect_ok(tsr_snapshot_open(&s, &r->net));
    each_element(&r->net, spoil);
    expect_ok(tsr_snapshot_take(s));
    each_element(&r->net, put);
    expect_ok(tsr_snapshot_take(s)); // again: nothing of the first one stays
    each_element(&r->net, spoil);
    expect_ok(tsr_snapshot_write(s, c));
    assert_true(tsr_snapshot_bytes(&r->net) >= (size_t)c->elems_written * sizeof(float));
    tsr_snapshot_close(s);
}

static enum { COPIED, DIRECT, STAGED } way;

static void save_in(int l) {
    struct tsr_checkpoint *c[8];
    struct gathered g;
    int world = world_of(&layouts[l]);
    x.opt.attempt++;
    for (int i = 0; i < world; i++) {
        x.opt.table = &ranks[l][i].net.tensors;
        expect_ok(tsr_checkpoint_open(&c[i], &x.opt));
    }
    expect_ok(tsr_checkpoint_begin(c[0], &x.state, NULL, NULL));
    open_gathered(&g, &x, c[0]);
    for (int i = 0; i < world; i++) {
        struct tsr_save_vote v;
        if (way == COPIED)
            save_rank(&ranks[l][i], c[i]);
        else
            save_direct(&ranks[l][i], c[i], way == STAGED);
        expect_ok(tsr_checkpoint_flush(c[i], &v));
        gather(&g, &v);
    }
    assert_true(g.elements == g.plan.elements);
    read_back(&g, c, world);
    expect_ok(publish(&g.publish));
    for (int i = 0; i < world; i++)
        tsr_checkpoint_close(c[i]);
    free_gathered(&g);
}

static void load_in(int l) {
    for (int i = 0; i < world_of(&layouts[l]); i++) {
        struct tsr_net *net = &ranks[l][i].net;
        each_element(net, spoil);
        expect_ok(tsr_store_load_checkpoint(net, in_checkpoint(&x, ""), true));
        each_element(net, check);
    }
}

// ---- tests

// `all` false: each layout's checkpoint is loaded by the next layout only.
static void check_pairs(bool all) {
    struct tsr_digest first = {0}, next;
    for (int from = 0; from < N_LAYOUTS; from++) {
        save_in(from); // replaces the one before
        expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
        expect_ok(tsr_ckpt_manifest_digest(in_checkpoint(&x, ""), &next)); // so all files' bytes
        if (from == 0)
            first = next;
        assert_memory_equal(&first, &next, sizeof first);
        for (way = DIRECT; !all && way <= STAGED; way++) {
            save_in(from);
            expect_ok(tsr_ckpt_manifest_digest(in_checkpoint(&x, ""), &next));
            assert_memory_equal(&first, &next, sizeof first);
        }
        way = COPIED;
        for (int to = 0; to < N_LAYOUTS; to++)
            if (all || to == (from + 1) % N_LAYOUTS)
                load_in(to);
    }
}

static void test_all_ordered_pairs(void **state) {
    (void)state;
    check_pairs(true);
}

static void test_ring(void **state) {
    (void)state;
    check_pairs(false);
}

// A checkpoint of one precision is continued in the other; what isn't rounded stays exact.
static void test_precisions(void **state) {
    (void)state;
    save_in(1);
    close_ranks();
    open_ranks(&narrow);
    for (int l = 0; l < N_LAYOUTS; l++)
        load_in(l);
    x.state.step = ++x.opt.step;
    save_in(4);
    close_ranks();
    open_ranks(&ctx);
    for (int l = 0; l < N_LAYOUTS; l++)
        load_in(l);
}

static void check_rounded(float *have, float want, const struct tsr_tensor *t) {
    check(have, rounded(want), t);
}

// Model files alone have no master: it begins as what they hold.
static void test_model_files(void **state) {
    (void)state;
    save_in(3);
    for (int l = 0; l < N_LAYOUTS; l++)
        for (int i = 0; i < world_of(&layouts[l]); i++) {
            struct tsr_net *net = &ranks[l][i].net;
            each_element(net, spoil);
            expect_ok(tsr_store_load_weights(net, in_checkpoint(&x, "")));
            for (int k = 0; k < net->n_params; k++)
                if (!net->params[k].alias)
                    each_weight(&net->params[k], check_rounded);
        }
}

// The shard maps that the ranks publish cover every tensor once.
static void test_shard_maps(void **state) {
    (void)state;
    for (int i = 0; i < N_LAYOUTS; i++) {
        struct tsr_shard_maps m;
        uint64_t elements = 0, want = 0;
        expect_ok(tsr_shard_maps_init(&m, world_of(&layouts[i])));
        for (int rank = 0; rank < world_of(&layouts[i]); rank++) {
            struct tsr_snapshot *s;
            expect_ok(tsr_snapshot_open(&s, &ranks[i][rank].net));
            Tessera__Checkpoint__ShardMap *map = tsr_saver_map(s);
            assert_non_null(map);
            expect_ok(tsr_shard_maps_put(&m, rank, map));
            tessera__checkpoint__shard_map__free_unpacked(map, NULL);
            tsr_snapshot_close(s);
            elements += tsr_shard_maps_elements(&m, rank);
        }
        if (tsr_shard_maps_check(&m) != TSR_COVER_WHOLE)
            fail_msg("%s", m.text);
        for (int t = 0; t < x.table.n; t++)
            want +=
                (uint64_t)(x.table.t[t].rows * x.table.t[t].cols) * (x.table.t[t].frozen ? 1 : 3);
        assert_true(elements == want);
        tsr_shard_maps_free(&m);
    }
}

#define WITH(test, begin) cmocka_unit_test_setup_teardown(test, begin, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_all_ordered_pairs, start_llama), WITH(test_ring, start_gpt2),
        WITH(test_ring, start_llama_bf16),         WITH(test_ring, start_gpt2_bf16),
        WITH(test_precisions, start_llama),        WITH(test_precisions, start_gpt2),
        WITH(test_model_files, start_llama_bf16),  WITH(test_model_files, start_gpt2_bf16),
        WITH(test_shard_maps, start_llama),        WITH(test_shard_maps, start_gpt2),
    };
    return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
