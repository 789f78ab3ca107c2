// Every operation of the CUDA backend's table, through the object that a program loads, against
// the CPU's in fp32: the same bits. Each kernel has tests of its own; here it is what the host side
// makes of the arguments.
#include "tests/simt/backend_util.h"

static void test_products(void **state) {
    (void)state;
    enum { M = 19, N = 37, K = 45 };
    for (int mode = 0; mode < 3; mode++)
        for (int shape = 0; shape < 2; shape++) {
            struct twin a = random_twin(M * K, -1, 1), b = random_twin(K * N, -1, 1);
            struct twin c = random_twin(M * N, -1, 1), pre = random_twin(M * N, 0, 0);
            struct twin bias = random_twin(N, -1, 1), res = random_twin(M * N, -1, 1);
            EACH {
                struct tsr_gemm_seg segs[3];
                int n_segs = mode == TSR_GEMM_CHAIN ? 1 : 3;
                for (int s = 0; s < 3; s++) {
                    int lo = K * s / n_segs, piece = mode == TSR_GEMM_CHAIN ? 0 : s == 2 ? 3 : 1;
                    float *pa = (float *)P(a) + (shape ? lo * M : lo), *pb = (float *)P(b);
                    segs[s] = (struct tsr_gemm_seg){.a = pa,
                                                    .a_i = shape ? 1 : K,
                                                    .a_p = shape ? M : 1,
                                                    .b = pb + (shape ? lo : lo * N),
                                                    .b_p = shape ? 1 : N,
                                                    .b_j = shape ? K : 1,
                                                    .k = K / n_segs,
                                                    .piece = piece};
                }
                struct tsr_gemm g = {.m = M,
                                     .n = N,
                                     .n_pieces = mode == TSR_GEMM_CHAIN ? 1 : 4,
                                     .n_segs = n_segs,
                                     .segs = segs,
                                     .mode = (enum tsr_gemm_mode)mode,
                                     .c = P(c),
                                     .ldc = N};
                if (mode == TSR_GEMM_STORE) {
                    g.bias = P(bias);
                    g.pre = P(pre);
                    g.has_act = true;
                    g.act = TSR_ACT_GELU;
                    g.residual = P(res);
                    g.ldr = N;
                }
                OP(gemm(ctx, &g));
            }
            same_bytes(c);
            same_bytes(pre);
            free_twins(state);
        }
}

static void test_embeddings(void **state) {
    (void)state;
    enum { N = 40, C = 33, V = 12, ROW0 = 3 };
    int32_t ids[N], pos[N];
    for (int i = 0; i < N; i++) {
        ids[i] = (i * 7 + i / 5) % 17;
        pos[i] = i % V;
    }
    struct twin id = twin_of(ids, sizeof ids), at = twin_of(pos, sizeof pos);
    struct twin table = random_twin(V * C, -1, 1), grad = random_twin(V * C, -1, 1);
    struct twin x = random_twin(N * C, -1, 1), dx = random_twin(N * C, -1, 1);
    const struct tsr_rows chains[] = {{0, 7, 1}, {7, 13, 0}, {20, 9, 1}, {31, 9, 2}};
    const struct tsr_rows one[] = {{2, N - 2, 0}};
    EACH {
        OP(embedding(ctx, P(x), P(id), P(table), ROW0, V, N, C));
        OP(position(ctx, P(x), P(at), P(table), N, C));
        OP(embedding_bwd(ctx, P(grad), P(id), P(dx), one, 1, 1, ROW0, V, C));
        OP(embedding_bwd(ctx, P(grad), P(id), P(dx), chains, 4, 5, ROW0, V, C));
        OP(embedding_bwd(ctx, P(grad), P(id), P(dx), chains, 0, 5, ROW0, V, C));
    }
    same_bytes(x);
    same_bytes(grad);
}

static void test_norms(void **state) {
    (void)state;
    enum { N = 21, C = 70 };
    struct twin x = random_twin(N * C, -2, 2), w = random_twin(C, -1, 1), b = random_twin(C, -1, 1);
    struct twin y = random_twin(N * C, 0, 0), mean = random_twin(N, 0, 0);
    struct twin rstd = random_twin(N, 0, 0), dy = random_twin(N * C, -1, 1);
    struct twin dx = random_twin(N * C, 0, 0), dw = random_twin(4 * C, -1, 1);
    struct twin db = random_twin(4 * C, -1, 1), sum = random_twin(4 * C, -1, 1);
    const struct tsr_rows rows[] = {{0, 5, 1}, {5, 8, 0}, {13, 4, 1}, {18, 3, 3}};
    for (int rms = 0; rms < 2; rms++) {
        EACH {
            if (rms)
                OP(rmsnorm(ctx, P(y), P(rstd), P(x), P(w), 1e-5f, N, C));
            else
                OP(layernorm(ctx, P(y), P(mean), P(rstd), P(x), P(w), P(b), 1e-5f, N, C));
            OP(norm_bwd(ctx, P(dx), rms ? P(y) : NULL, P(dy), P(x), P(w), rms ? NULL : P(mean),
                        P(rstd), N, C));
            OP(norm_bwd_params(ctx, P(dw), rms ? NULL : P(db), P(dy), P(x), rms ? NULL : P(mean),
                               P(rstd), rows, 4, C));
            OP(colsum(ctx, P(sum), P(x), C, rows, 4, C));
        }
        same_bytes(y);
        same_bytes(rstd);
        same_bytes(dx);
        same_bytes(dw);
        same_bytes(db);
        same_bytes(sum);
    }
    same_bytes(mean);
}

static void test_rotary(void **state) {
    (void)state;
    enum { N = 9, HEADS = 3, D = 20, LD = HEADS * D + 4 };
    const int32_t at[N] = {4, 1, 0, 2, 3, 7, 6, 5, 0};
    struct twin x = random_twin(N * LD, -1, 1), table = random_twin(8 * D, -1, 1);
    struct twin pos = twin_of(at, sizeof at);
    EACH {
        OP(rotary(ctx, P(x), LD, P(pos), P(table), N, HEADS, D, false));
        OP(rotary(ctx, P(x), LD, P(pos), P(table), N, HEADS - 1, D, true));
    }
    same_bytes(x);
}

enum { NQ = 4, NKV = 2, D = 24, TOKENS = 50 };

static struct tsr_attn attn_of(const struct tsr_segment *segs, int n_segs) {
    return (struct tsr_attn){.nq = NQ,
                             .nkv = NKV,
                             .group = NQ / NKV,
                             .head_dim = D,
                             .scale = 0.2f,
                             .n_segs = n_segs,
                             .segs = segs,
                             .n_tokens = TOKENS,
                             .ldq = NQ * D,
                             .ldk = NKV * D,
                             .ldv = NKV * D,
                             .ldo = NQ * D};
}

static void test_attention(void **state) {
    (void)state;
    const struct tsr_segment segs[] = {{.start = 0, .length = 31, .sequence = 5},
                                       {.start = 31, .length = 19, .sequence = 1ull << 33}};
    const struct tsr_kv_slot slots[] = {{0, 1, 0, 0}, {1, 1, 0, 1}, {2, 2, 1, 3}};
    struct twin q = random_twin(TOKENS * NQ * D, -1, 1), o = random_twin(TOKENS * NQ * D, 0, 0);
    struct twin k = random_twin(TOKENS * NKV * D, -1, 1), v = random_twin(TOKENS * NKV * D, -1, 1);
    struct twin lse = random_twin(NQ * TOKENS, 0, 0), d_o = random_twin(TOKENS * NQ * D, -1, 1);
    struct twin dq = random_twin(TOKENS * NQ * D, 0, 0), dk = random_twin(TOKENS * 3 * D, 0, 0);
    struct twin dv = random_twin(TOKENS * 3 * D, 0, 0), dkv = random_twin(TOKENS * NKV * D, 0, 0);
    for (int drop = 0; drop < 2; drop++) {
        struct tsr_attn a = attn_of(segs, 2);
        a.drop = (struct tsr_dropout){drop ? 0.3f : 0.0f, {7, 8}};
        a.window = drop ? 9 : 0;
        EACH {
            OP(attention(ctx, &a, P(o), P(lse), P(q), P(k), P(v)));
            OP(attention_bwd(ctx, &a, slots, 3, P(dq), P(dk), P(dv), P(d_o), P(o), P(lse), P(q),
                             P(k), P(v)));
            OP(kv_slot_sum(ctx, P(dkv), drop == 1, P(dk), slots, 3, 4, NKV, TOKENS, D));
        }
        same_bytes(o);
        same_bytes(lse);
        same_bytes(dq);
        same_bytes(dk);
        same_bytes(dv);
        same_bytes(dkv);
    }
}

// Two sequences in one paged cache, one prefilled in two goes, then single tokens; the host's
// arrays are used again with other contents, as an engine does.
static void test_cache(void **state) {
    (void)state;
    enum { BLOCK = 8, BLOCKS = 20 };
    struct twin q = random_twin(TOKENS * NQ * D, -1, 1), o = random_twin(TOKENS * NQ * D, 0, 0);
    struct twin k = random_twin(TOKENS * NKV * D, -1, 1), v = random_twin(TOKENS * NKV * D, -1, 1);
    struct twin ck = random_twin(BLOCKS * BLOCK * NKV * D, 0, 0);
    struct twin cv = random_twin(BLOCKS * BLOCK * NKV * D, 0, 0);
    int32_t tables[2][10];
    for (int i = 0; i < 10; i++) {
        tables[0][i] = 2 * i;
        tables[1][i] = 19 - 2 * i;
    }
    for (int step = 0; step < 6; step++) {
        EACH {
            struct tsr_kv_cache caches[2];
            for (int s = 0; s < 2; s++)
                caches[s] = (struct tsr_kv_cache){P(ck), P(cv), tables[s], BLOCK, 10};
            struct tsr_segment segs[2] = {
                {.length = step == 0   ? 20
                           : step == 1 ? 13
                                       : 1,
                 .cache = &caches[0]},
                {.start = 20, .length = step == 0 ? 30 : 1, .cache = &caches[1]}};
            segs[0].position = step == 0 ? 0 : step == 1 ? 20 : 31 + step;
            segs[1].position = step == 0 ? 0 : 29 + step;
            struct tsr_attn a = attn_of(segs, 2);
            OP(kv_store(ctx, &a, P(k), P(v)));
            OP(attention(ctx, &a, P(o), NULL, P(q), P(k), P(v)));
        }
        same_bytes(ck);
        same_bytes(cv);
        same_bytes(o);
    }
}

static void test_activations(void **state) {
    (void)state;
    enum { N = 301 };
    struct twin x = random_twin(N, -5, 5), up = random_twin(N, -1, 1), dy = random_twin(N, -1, 1);
    struct twin y = random_twin(N, 0, 0), dx = random_twin(N, 0, 0), dup = random_twin(N, 0, 0);
    for (int f = 0; f < 3; f++) {
        enum tsr_act act = (enum tsr_act[]){TSR_ACT_GELU, TSR_ACT_GELU_TANH, TSR_ACT_SILU}[f];
        EACH {
            OP(act(ctx, act, P(y), P(x), N));
            OP(act_bwd(ctx, act, P(dx), P(dy), P(x), N));
        }
        same_bytes(y);
        same_bytes(dx);
        EACH {
            OP(gated(ctx, act, P(y), P(x), P(up), N));
            OP(gated_bwd(ctx, act, P(dx), P(dup), P(dy), P(x), P(up), N));
        }
        same_bytes(y);
        same_bytes(dx);
        same_bytes(dup);
    }
}

static void test_dropout(void **state) {
    (void)state;
    enum { C = 45, LD = 50, N = 12 };
    struct twin y = random_twin(N * LD, -1, 1), res = random_twin(N * LD, -1, 1);
    struct twin bias = random_twin(C, -1, 1), out = random_twin(N * LD, 0, 0);
    struct tsr_segment segs[] = {{.start = 0, .length = 5}, {.start = 6, .length = 6}};
    struct tsr_dropout d = {0.25f, {3, 4}};
    for (int step = 0; step < 3; step++) { // the array's address stays, what it holds doesn't
        segs[0].sequence = 100 + (uint64_t)step;
        segs[1].position = 7 * step;
        EACH OP(bias_dropout_add(ctx, P(out), P(res), P(y), step == 1, P(bias), &d, segs, 2, LD, C,
                                 13));
        same_bytes(out);
        EACH OP(dropout_bwd(ctx, P(out), P(y), &d, segs, 2, LD, C, 13));
        same_bytes(out);
    }
}

static void test_sums(void **state) {
    (void)state;
    enum { N = 1000, ROWS = 23, COLS = 40, LD = 43 };
    struct twin in[5], out = random_twin(N, 0, 0), sums;
    double none[4] = {0};
    for (int i = 0; i < 5; i++)
        in[i] = random_twin(N, -1, 1);
    sums = twin_of(none, sizeof none);
    const int64_t bounds[] = {1, 1, 8, 9, ROWS};
    EACH {
        const float *all[5];
        for (int i = 0; i < 5; i++)
            all[i] = P(in[i]);
        OP(add(ctx, P(out), P(in[0]), P(in[1]), N));
        OP(add_f32(ctx, P(in[0]), P(out), P(in[2]), N));
        OP(tree_add(ctx, P(out), all, 5, N));
        OP(sumsq(ctx, P(sums), P(in[3]), LD, bounds, 4, COLS));
    }
    same_bytes(out);
    same_bytes(in[0]);
    same_bytes(sums);
}

static void test_xent(void **state) {
    (void)state;
    enum { N = 11, V = 100, ROW0 = 20 };
    int32_t targets[N];
    const int bounds[] = {0, 13, 13, 57, V};
    for (int i = 0; i < N; i++)
        targets[i] = i == 3 ? -1 : ROW0 + (i * 31) % (V + 20) - 10;
    struct twin target = twin_of(targets, sizeof targets), logits = random_twin(N * V, -9, 9);
    struct twin max = random_twin(N, 0, 0), sums = random_twin(2 * N, 0, 0);
    struct twin loss = random_twin(N, 0, 0);
    EACH {
        OP(xent_max(ctx, P(max), P(logits), N, V));
        OP(xent_exp(ctx, P(logits), P(sums), P(max), P(target), bounds, 4, ROW0, N, V));
        OP(xent_loss(ctx, P(loss), P(logits), P(sums), P(target), 0.125f, true, ROW0, N, V));
    }
    same_bytes(max);
    same_bytes(sums);
    same_bytes(loss);
    same_bytes(logits);
}

static void test_sample(void **state) {
    (void)state;
    enum { ROWS = 4, V = 777 };
    struct twin logits = random_twin(ROWS * V, -4, 4), next = random_twin(ROWS, 0, 0);
    const struct tsr_sampling s[ROWS] = {{.temperature = 0, .top_p = 1},
                                         {.temperature = 1, .top_p = 1, .seed = 7},
                                         {.temperature = 0.7, .top_p = 0.9, .top_k = 50},
                                         {.temperature = 2, .top_p = 1, .min_p = 0.1}};
    for (uint64_t step = 0; step < 5; step++) {
        const uint64_t index[ROWS] = {step, step + 1, 10 * step, 3};
        EACH OP(sample(ctx, P(next), P(logits), s, index, ROWS, V));
        same_bytes(next);
    }
}

static void test_updates(void **state) {
    (void)state;
    enum { ROWS = 9, COLS = 31, LDW = 33, LDG = 40 };
    struct twin w = random_twin(ROWS * LDW, -1, 1), g = random_twin(ROWS * LDG, -1, 1);
    struct twin m = random_twin(ROWS * COLS, -1, 1), v = random_twin(ROWS * COLS, 0, 1);
    const struct tsr_adamw p = {1e-3f, 0.9f,       0.95f,    1e-8f, 0.1f, 0.1f,
                                0.05f, 0.5217031f, 0.54995f, 0.75f, NULL};
    struct tsr_rng_key key = {5, 6};
    EACH {
        OP(adamw(ctx, &p, P(w), LDW, P(m), P(v), P(g), LDG, ROWS, COLS, NULL));
        OP(init_normal(ctx, P(g), key, 0.02f, 3, ROWS, 2, LDG, 100));
    }
    same_bytes(w);
    same_bytes(m);
    same_bytes(v);
    same_bytes(g);
}

static void test_memory(void **state) {
    (void)state;
    enum { ROWS = 6, COLS = 21, LDD = 25, LDS = 30 };
    struct twin a = random_twin(ROWS * LDS, -1, 1), b = random_twin(ROWS * LDD, -1, 1);
    struct twin h = random_twin(ROWS * LDS, 0, 0), z = random_twin(100, 1, 2);
    EACH {
        OP(copy_2d(ctx, P(b), LDD, P(a), LDS, ROWS, COLS));
        OP(convert(ctx, TSR_DT_BF16, P(h), LDS, TSR_DT_F32, P(a), LDS, ROWS, COLS));
        OP(convert(ctx, TSR_DT_F32, P(a), LDS, TSR_DT_BF16, P(h), LDS, ROWS, COLS - 1));
        OP(zero(ctx, (char *)P(z) + 40, 200));
        OP(copy(ctx, P(z), (char *)P(b) + 4, 36));
    }
    same_bytes(a);
    same_bytes(b);
    same_bytes(h);
    same_bytes(z);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        T(test_products), T(test_embeddings),  T(test_norms),   T(test_rotary), T(test_attention),
        T(test_cache),    T(test_activations), T(test_dropout), T(test_sums),   T(test_xent),
        T(test_sample),   T(test_updates),     T(test_memory)};
    return cmocka_run_group_tests(tests, open_both, close_both);
}
