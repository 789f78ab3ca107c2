#include "dist/infer.h"

#include <stdlib.h>
#include <string.h>
#include "core/arena.h"
#include "core/checkpoint.h"
#include "core/error.h"
#include "dist/ends.h"
#include "dist/leaves.h"
#include "dist/store.h"

enum { BLOCK_TOKENS = 16 };

static size_t row_bytes(const struct tsr_infer *g, int n) {
    return (size_t)n * (size_t)g->net.m->hidden * tsr_dtype_size(g->net.ctx->dtype);
}

static int open_cache(struct tsr_infer *g) {
    struct tsr_range layers = tsr_net_layers(&g->net, 0);
    size_t n_layers = (size_t)tsr_range_len(layers);
    size_t n_blocks = (size_t)(g->capacity + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    size_t one = n_blocks * BLOCK_TOKENS * (size_t)(tsr_range_len(g->net.kv) * g->net.m->head_dim) *
                 tsr_dtype_size(g->net.ctx->dtype);
    g->caches = calloc(n_layers + 1, sizeof *g->caches);
    g->segs = calloc(n_layers + 1, sizeof *g->segs);
    g->blocks = calloc(n_blocks + 1, sizeof *g->blocks);
    if (!g->caches || !g->segs || !g->blocks)
        return tsr_fail(TSR_ENOMEM, "no memory for the key/value cache");
    for (size_t i = 0; i < n_blocks; i++)
        g->blocks[i] = (int32_t)i;
    g->cache_bytes = 2 * one * n_layers;
    TSR_TRY(g->net.ctx->ops->alloc(g->net.ctx, g->cache_bytes, &g->cache_slab));
    for (size_t l = 0; l < n_layers; l++)
        g->caches[l] = (struct tsr_kv_cache){.k = (char *)g->cache_slab + 2 * l * one,
                                             .v = (char *)g->cache_slab + (2 * l + 1) * one,
                                             .blocks = g->blocks,
                                             .block_tokens = BLOCK_TOKENS,
                                             .n_blocks = (int)n_blocks};
    return 0;
}

// V of the run that trained the model: its checkpoints carry it.
static int virtual_shards(const char *dir, int *V) {
    char path[TSR_PATH_MAX];
    *V = 8;
    TSR_TRY(tsr_path_join(path, dir, "state.json"));
    if (!tsr_path_exists(path))
        return 0;
    struct tsr_state s;
    TSR_TRY(tsr_state_read(&s, dir));
    *V = (int)s.virtual_shards;
    tsr_state_free(&s);
    return 0;
}

static int place_mesh(struct tsr_mesh *mesh, const struct tsr_model *m, int V, int tp, int pp,
                      const struct tsr_comm *comm) {
    if (tp * pp != comm->world)
        return tsr_fail(TSR_EUSAGE, "--tp %d and --pp %d need %d ranks (mpirun -np %d), found %d",
                        tp, pp, tp * pp, tp * pp, comm->world);
    if (!tsr_pieces_deal(V, tp))
        return tsr_fail(TSR_EUSAGE,
                        "--tp %d does not fit the model's %d virtual shards: tp must be 1, or %d / "
                        "tp a power of two",
                        tp, V, V);
    if (tp > m->n_heads || pp > m->n_layers)
        return tsr_fail(TSR_EUSAGE, "%lld heads and %lld layers can't be dealt out to tp %d, pp %d",
                        (long long)m->n_heads, (long long)m->n_layers, tp, pp);
    tsr_mesh_place(mesh, tp, pp, 1, comm->rank);
    mesh->chunks = 1;
    mesh->V = V;
    mesh->W = 1;
    return 0;
}

static int load_shape(struct tsr_infer *g, const char *dir, const struct tsr_comm *comm, int tp,
                      int pp, int positions, struct tsr_mesh *mesh) {
    int V;
    TSR_TRY(tsr_model_load(&g->m, dir));
    TSR_TRY(virtual_shards(dir, &V));
    TSR_TRY(place_mesh(mesh, &g->m, V, tp, pp, comm));
    if (g->m.position != TSR_POS_ROTARY && positions > g->m.max_positions)
        return tsr_fail(TSR_EUSAGE, "%d tokens asked for, but the model has %lld positions",
                        positions, (long long)g->m.max_positions);
    return 0;
}

// Places what picking a token needs; slab NULL: only counts.
static void place_pick(struct tsr_infer *g, struct tsr_ctx *ctx, struct tsr_arena *arena) {
    size_t vocab = (size_t)g->m.vocab;
    g->logits = tsr_arena_take(arena, vocab * sizeof *g->logits);
    g->gathered = g->logits;
    if (ctx->dtype != TSR_DT_F32)
        g->gathered = tsr_arena_take(arena, vocab * tsr_dtype_size(ctx->dtype));
    g->picked = tsr_arena_take(arena, sizeof *g->picked);
}

static int open_pick(struct tsr_infer *g, struct tsr_ctx *ctx) {
    struct tsr_arena arena;
    tsr_arena_init(&arena, "sampling", NULL, 0);
    place_pick(g, ctx, &arena);
    g->pick_bytes = arena.used;
    TSR_TRY(ctx->ops->alloc(ctx, g->pick_bytes, &g->pick_slab));
    tsr_arena_init(&arena, "sampling", g->pick_slab, g->pick_bytes);
    place_pick(g, ctx, &arena);
    return 0;
}

static int open_buffers(struct tsr_infer *g, struct tsr_ctx *ctx) {
    TSR_TRY(tsr_batch_open(&g->batch, &g->net, 1, g->most));
    g->batch.n_pieces = 1;
    TSR_TRY(tsr_model_state_open(&g->state, &g->net, &g->batch, TSR_RECOMPUTE_NONE, NULL, false));
    void *x = NULL;
    TSR_TRY(ctx->ops->alloc(ctx, row_bytes(g, g->most), &x));
    g->x = x;
    if (g->capacity > 0)
        TSR_TRY(open_cache(g));
    return open_pick(g, ctx);
}

int tsr_infer_open(struct tsr_infer *g, const char *dir, struct tsr_ctx *ctx, struct tsr_comm *comm,
                   int tp, int pp, int capacity, int most) {
    struct tsr_mesh mesh;
    struct tsr_net_opt opt = {.n_grad_buffers = 1};
    int positions = capacity > most ? capacity : most;
    memset(g, 0, sizeof *g);
    g->most = most;
    g->capacity = capacity;
    TSR_TRY(tsr_agree(ctx, comm, load_shape(g, dir, comm, tp, pp, positions, &mesh)));
    TSR_TRY(tsr_net_open(&g->net, ctx, comm, &mesh, &g->m, &opt, positions));
    TSR_TRY(tsr_agree(ctx, comm, open_buffers(g, ctx)));
    return tsr_agree(ctx, comm, tsr_store_load_weights(&g->net, dir));
}

void tsr_infer_close(struct tsr_infer *g) {
    if (g->net.ctx) {
        if (g->step)
            g->net.ctx->ops->graph_free(g->net.ctx, g->step);
        g->net.ctx->ops->free(g->net.ctx, g->cache_slab, g->cache_bytes);
        g->net.ctx->ops->free(g->net.ctx, g->pick_slab, g->pick_bytes);
        g->net.ctx->ops->free(g->net.ctx, g->x, row_bytes(g, g->most));
        tsr_model_state_close(&g->state);
        tsr_batch_close(&g->batch);
        tsr_net_close(&g->net);
    }
    free(g->caches);
    free(g->segs);
    free(g->blocks);
    tsr_model_free(&g->m);
    memset(g, 0, sizeof *g);
}

// Shapes the batch as one segment of n tokens.
static void shape_batch(struct tsr_infer *g, const int32_t *tokens, const int32_t *targets, int n,
                        int position) {
    struct tsr_batch *b = &g->batch;
    struct tsr_segment s = {.length = n, .position = position};
    b->n = b->n_local = n;
    b->tok_lo = 0;
    b->tok_hi = n;
    b->n_segs = b->n_local_segs = 1;
    b->segs[0] = b->local_segs[0] = b->whole_segs[0] = s;
    for (int64_t l = 0; g->segs && l < tsr_range_len(tsr_net_layers(&g->net, 0)); l++) {
        g->segs[l] = s;
        g->segs[l].cache = &g->caches[l];
    }
    for (int i = 0; i < n; i++) {
        b->ids[i] = tokens[i];
        b->pos[i] = b->pos_local[i] = position + i;
        b->targets[i] = targets ? targets[i] : -1;
    }
}

// Through all stages; *y is the last block's output on the last stage. `segs` as in
// tsr_stage_infer.
static int run_stages(struct tsr_infer *g, struct tsr_segment *segs, tsr_elem **y) {
    struct tsr_net *net = &g->net;
    const struct tsr_comm_ops *ops = net->comm->ops;
    struct tsr_request r = {0};
    size_t n_bytes = row_bytes(g, g->batch.n);
    int me = net->mesh.pp_rank;
    TSR_TRY(tsr_batch_upload(&g->batch));
    if (me > 0) {
        TSR_TRY(ops->recv(net->ctx, net->comm, &net->pp, g->x, n_bytes, me - 1, 0, &r));
        TSR_TRY(ops->wait(net->ctx, net->comm, &r));
    }
    TSR_TRY(tsr_stage_infer(&g->state, 0, &g->batch, g->x, segs, y));
    TSR_TRY(net->ctx->ops->sync(net->ctx));
    if (me == net->mesh.pp - 1)
        return 0;
    TSR_TRY(ops->send(net->ctx, net->comm, &net->pp, *y, n_bytes, me + 1, 0, &r));
    return ops->wait(net->ctx, net->comm, &r);
}

// Logits of the batch's last row on every tensor-parallel rank of the last stage.
static int last_logits(struct tsr_infer *g, const tsr_elem *y) {
    struct tsr_net *net = &g->net;
    struct tsr_ends *e = &g->state.ends;
    const struct tsr_ops *ops = net->ctx->ops;
    const tsr_elem *h = tsr_at(net->ctx, y, (g->batch.n - 1) * net->m->hidden);
    const int64_t vocab = net->m->vocab;
    size_t n_bytes[256];
    if (net->final_w) {
        TSR_TRY(tsr_norm(net, e->h, e->max, e->loss, h, net->final_w, net->final_b, 1));
        h = e->h;
    }
    TSR_TRY(tsr_head_logits(net, net->mesh.tp == 1 ? g->gathered : e->logits, h, 1));
    if (net->mesh.tp > 1) {
        TSR_TRY(ops->sync(net->ctx));
        for (int r = 0; r < net->mesh.tp; r++)
            n_bytes[r] =
                (size_t)tsr_range_len(tsr_piece_of_rank(vocab, net->mesh.V, r, net->mesh.tp)) *
                tsr_dtype_size(net->ctx->dtype);
        TSR_TRY(net->comm->ops->all_gather(net->ctx, net->comm, &net->tp, g->gathered, e->logits,
                                           n_bytes, NULL));
    }
    if (g->gathered == g->logits)
        return 0;
    return ops->convert(net->ctx, TSR_DT_F32, g->logits, vocab, net->ctx->dtype, g->gathered, vocab,
                        1, vocab);
}

// Picks the token after the batch's last row, which is in g->next after a sync.
static int pick(struct tsr_infer *g, const tsr_elem *y) {
    struct tsr_ctx *ctx = g->net.ctx;
    TSR_TRY(last_logits(g, y));
    TSR_TRY(ctx->ops->sample(ctx, g->picked, g->logits, &g->sampling, &g->index, 1, g->m.vocab));
    return ctx->ops->to_host(ctx, &g->next, g->picked, sizeof g->next);
}

// A step that one device does alone: nothing in it waits.
static int step(struct tsr_infer *g) {
    tsr_elem *y = NULL;
    TSR_TRY(tsr_batch_upload(&g->batch));
    TSR_TRY(tsr_stage_infer(&g->state, 0, &g->batch, g->x, g->segs, &y));
    return pick(g, y);
}

// The same, recorded the first time: every later step of one token differs only in the contents of
// arrays on the host.
static int recorded_step(struct tsr_infer *g) {
    struct tsr_ctx *ctx = g->net.ctx;
    if (g->step)
        return ctx->ops->replay(ctx, g->step);
    TSR_TRY(ctx->ops->record(ctx));
    int rc = step(g), end = ctx->ops->recorded(ctx, &g->step);
    return rc < 0 ? rc : end;
}

int tsr_infer_next(struct tsr_infer *g, const int32_t *tokens, int n, int position,
                   const struct tsr_sampling *s, int32_t *next) {
    struct tsr_net *net = &g->net;
    const struct tsr_ops *ops = net->ctx->ops;
    bool last = net->mesh.pp_rank == net->mesh.pp - 1;
    tsr_elem *y = NULL;
    TSR_ASSERT(n > 0 && position + n <= g->capacity);
    g->sampling = *s;
    g->index = (uint64_t)(position + n);
    if (n == 1 && ops->record && net->mesh.tp == 1 && net->mesh.pp == 1) {
        shape_batch(g, tokens, NULL, 1, position);
        TSR_TRY(recorded_step(g));
    } else {
        for (int at = 0; at < n; at += g->most) {
            int run = n - at < g->most ? n - at : g->most;
            shape_batch(g, tokens + at, NULL, run, position + at);
            TSR_TRY(run_stages(g, g->segs, &y));
        }
        if (last)
            TSR_TRY(pick(g, y));
    }
    TSR_TRY(ops->sync(net->ctx));
    if (last)
        *next = g->next;
    int root = tsr_mesh_rank(&net->mesh, 0, net->mesh.pp - 1, 0);
    return net->comm->control->broadcast(net->ctx, net->comm, &net->comm->world_group, next,
                                         sizeof *next, root);
}

int tsr_infer_loss(struct tsr_infer *g, const int32_t *tokens, const int32_t *targets, int n,
                   double *sum) {
    struct tsr_net *net = &g->net;
    tsr_elem *y = NULL;
    TSR_ASSERT(n <= g->most);
    *sum = 0.0;
    shape_batch(g, tokens, targets, n, 0);
    TSR_TRY(run_stages(g, NULL, &y));
    if (net->mesh.pp_rank == net->mesh.pp - 1) {
        float *stats = g->state.shared.rstd1, *mean = g->state.shared.mean1;
        TSR_TRY(tsr_head_forward(net, &g->batch, &g->state.work, &g->state.ends, y, mean, stats,
                                 NULL, 0.0f));
        TSR_TRY(net->ctx->ops->sync(net->ctx));
        for (int i = 0; i < n; i++)
            *sum += (double)g->batch.loss[i];
    }
    int root = tsr_mesh_rank(&net->mesh, 0, net->mesh.pp - 1, 0);
    return net->comm->control->broadcast(net->ctx, net->comm, &net->comm->world_group, sum,
                                         sizeof *sum, root);
}
