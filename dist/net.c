#include "dist/net.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/layout.h"
#include "dist/leaves.h"
#include "dist/update.h"
#include "dist/zero.h"

bool tsr_net_is_first(const struct tsr_net *net, int chunk) {
    return net->mesh.pp_rank == 0 && chunk == 0;
}

bool tsr_net_is_last(const struct tsr_net *net, int chunk) {
    return net->mesh.pp_rank == net->mesh.pp - 1 && chunk == net->mesh.chunks - 1;
}

struct tsr_range tsr_net_layers(const struct tsr_net *net, int chunk) {
    int stage = tsr_mesh_stage(&net->mesh, net->mesh.pp_rank, chunk);
    return tsr_mesh_layers(&net->mesh, net->m->n_layers, stage);
}

float *tsr_net_grad(const struct tsr_net *net, const struct tsr_param *p, int level) {
    return (float *)net->gradients + (size_t)level * net->grad_elems + p->g_at;
}

static enum tsr_grad_sum sum_of(const struct tsr_tensor *t) {
    if (t->frozen)
        return TSR_GRAD_NONE;
    switch (t->kind) {
    case TSR_T_TOK_EMBED:
    case TSR_T_POS_EMBED:
        return TSR_GRAD_TABLE;
    case TSR_T_Q_B:
    case TSR_T_K_B:
    case TSR_T_V_B:
    case TSR_T_GATE_B:
    case TSR_T_UP_B:
        return TSR_GRAD_COLUMN;
    default:
        return t->hf_ndim == 1 ? TSR_GRAD_TOKEN : TSR_GRAD_MATRIX; // one column is a matrix, too
    }
}

static struct tsr_param *add_param(struct tsr_net *net, const struct tsr_tensor *t, int chunk) {
    struct tsr_param *p = &net->params[net->n_params++];
    p->t = t;
    p->held = tsr_tensor_shard(t, net->mesh.V, net->mesh.tp_rank, net->mesh.tp);
    p->rows = p->held.r1 - p->held.r0;
    p->cols = p->held.c1 - p->held.c0;
    p->chunk = chunk;
    p->sum = sum_of(t);
    p->counted = true;
    return p;
}

static struct tsr_param *add_outer(struct tsr_net *net, enum tsr_kind kind, int chunk) {
    const struct tsr_tensor *t = tsr_tensor_find(&net->tensors, -1, kind);
    return t ? add_param(net, t, chunk) : NULL;
}

// The output side of a tied embedding: an alias beside the input side, a copy on another stage.
static void add_head(struct tsr_net *net, int chunk) {
    net->head = add_outer(net, TSR_T_LM_HEAD, chunk);
    if (net->head)
        return;
    net->head = add_outer(net, TSR_T_TOK_EMBED, chunk);
    net->head->sum = TSR_GRAD_MATRIX;
    net->head->alias = net->tok_embed != NULL;
    net->head->counted = false;
}

static void list_params(struct tsr_net *net) {
    net->n_chunks = net->mesh.chunks;
    for (int c = 0; c < net->mesh.chunks; c++) {
        net->first_param[c] = net->n_params;
        if (tsr_net_is_first(net, c)) {
            net->tok_embed = add_outer(net, TSR_T_TOK_EMBED, c);
            net->pos_embed = add_outer(net, TSR_T_POS_EMBED, c);
        }
        struct tsr_range layers = tsr_net_layers(net, c);
        for (int64_t l = layers.lo; l < layers.hi; l++)
            for (int k = 0; k < TSR_N_KINDS; k++) {
                const struct tsr_tensor *t = tsr_tensor_find(&net->tensors, (int)l, k);
                net->layer[l][k] = t ? add_param(net, t, c) : NULL;
            }
        if (tsr_net_is_last(net, c)) {
            net->final_w = add_outer(net, TSR_T_FINAL_W, c);
            net->final_b = add_outer(net, TSR_T_FINAL_B, c);
            add_head(net, c);
        }
    }
    net->first_param[net->mesh.chunks] = net->n_params;
}

// Rows [r0, r1) of the held part that lie in the share of `dp_rank` of piece `v`.
static struct tsr_range piece_share(const struct tsr_net *net, const struct tsr_param *p, int v,
                                    int dp_rank) {
    struct tsr_region piece = tsr_tensor_piece(p->t, v, net->mesh.V);
    int64_t n = piece.r1 - piece.r0;
    struct tsr_range blocks = tsr_piece_of_rank(n, net->mesh.W, dp_rank, net->mesh.dp);
    int64_t lo = piece.r0 + blocks.lo, hi = piece.r0 + blocks.hi;
    lo = lo > p->held.r0 ? lo : p->held.r0;
    hi = hi < p->held.r1 ? hi : p->held.r1;
    return (struct tsr_range){lo - p->held.r0, hi - p->held.r0};
}

int tsr_param_slices(const struct tsr_net *net, const struct tsr_param *p, int dp_rank,
                     struct tsr_range *out) {
    // Only a split by rows gives each piece rows of its own; otherwise all pieces share them.
    int n = 0, v_end = p->t->split == TSR_SPLIT_ROWS ? net->mesh.V : 1;
    for (int v = 0; v < v_end; v++) {
        struct tsr_range r = piece_share(net, p, v, dp_rank);
        if (r.hi > r.lo)
            out[n++] = r;
    }
    return n;
}

static int own_slices(struct tsr_net *net, struct tsr_param *p) {
    p->slices = calloc((size_t)net->mesh.V, sizeof *p->slices);
    if (!p->slices)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout");
    p->n_slices = tsr_param_slices(net, p, net->mesh.dp_rank, p->slices);
    for (int i = 0; i < p->n_slices; i++)
        p->n_own += tsr_range_len(p->slices[i]) * p->cols;
    return 0;
}

// How many chains of token pieces one replica's TOKEN sums need here.
int tsr_net_token_chains(const struct tsr_net *net) {
    return net->opt.sequence_parallel ? net->Vl : net->mesh.V;
}

// One pass over all slabs: measures when the arenas have no base, hands out when they do.
static void place(struct tsr_net *net, struct tsr_arena *w, struct tsr_arena *mv,
                  struct tsr_arena *masters, struct tsr_arena *acc) {
    size_t g = 0, es = tsr_dtype_size(net->ctx->dtype);
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        size_t n = (size_t)(p->rows * p->cols);
        if (p->alias)
            p->w = net->tok_embed->w;
        else
            p->w = tsr_arena_take(w, n * es);
        if (net->opt.training && net->ctx->dtype != TSR_DT_F32 && !p->alias)
            p->master = tsr_arena_take(masters, (size_t)p->n_own * sizeof(float));
        if (!net->opt.training || p->sum == TSR_GRAD_NONE)
            continue;
        p->g_at = g;
        g += tsr_align_up(n * sizeof(float)) / sizeof(float);
        if (!p->alias) {
            p->m = tsr_arena_take(mv, (size_t)p->n_own * sizeof(float));
            p->v = tsr_arena_take(mv, (size_t)p->n_own * sizeof(float));
        }
        size_t chains = (size_t)net->Wl;
        if (p->sum == TSR_GRAD_TOKEN)
            chains *= (size_t)tsr_net_token_chains(net);
        if (p->sum == TSR_GRAD_TOKEN || p->sum == TSR_GRAD_COLUMN)
            p->acc = tsr_arena_take(acc, chains * n * sizeof(float));
    }
    net->grad_elems = g;
    if (net->opt.training)
        net->sums = tsr_arena_take(acc, (size_t)net->n_sums * sizeof *net->sums);
}

// How many sums of squares a rank of the most makes: one of each row block of each piece.
static void count_sums(struct tsr_net *net) {
    for (int i = 0; i < net->n_params; i++) {
        const struct tsr_param *p = &net->params[i];
        if (p->counted && p->sum != TSR_GRAD_NONE)
            net->n_sums += (p->t->split != TSR_SPLIT_NONE ? net->Vl : 1) * net->Wl;
    }
}

static int allocate(struct tsr_net *net) {
    struct tsr_arena w, mv, masters, acc;
    tsr_arena_init(&w, "weights", NULL, 0);
    tsr_arena_init(&mv, "moments", NULL, 0);
    tsr_arena_init(&masters, "master weights", NULL, 0);
    tsr_arena_init(&acc, "accumulators", NULL, 0);
    place(net, &w, &mv, &masters, &acc);
    net->weights_bytes = w.used;
    net->moments_bytes = mv.used;
    net->masters_bytes = masters.used;
    net->accumulators_bytes = acc.used;
    net->gradients_bytes = net->grad_elems * sizeof(float) * (size_t)net->opt.n_grad_buffers;
    const struct tsr_ops *ops = net->ctx->ops;
    TSR_TRY(ops->alloc(net->ctx, net->weights_bytes, &net->weights));
    if (net->opt.training) {
        TSR_TRY(ops->alloc(net->ctx, net->moments_bytes, &net->moments));
        if (net->masters_bytes > 0)
            TSR_TRY(ops->alloc(net->ctx, net->masters_bytes, &net->masters));
        TSR_TRY(ops->alloc(net->ctx, net->accumulators_bytes, &net->accumulators));
        TSR_TRY(ops->alloc(net->ctx, net->gradients_bytes, &net->gradients));
    }
    tsr_arena_init(&w, "weights", net->weights, net->weights_bytes);
    tsr_arena_init(&mv, "moments", net->moments, net->moments_bytes);
    tsr_arena_init(&masters, "master weights", net->masters, net->masters_bytes);
    tsr_arena_init(&acc, "accumulators", net->accumulators, net->accumulators_bytes);
    place(net, &w, &mv, &masters, &acc);
    return 0;
}

static int open_groups(struct tsr_net *net) {
    const struct tsr_mesh *m = &net->mesh;
    const struct tsr_comm_ops *ops = net->comm->ops;
    int most = m->tp > m->pp ? m->tp : m->pp;
    most = most > m->dp ? most : m->dp;
    int *ranks = malloc(sizeof(int) * (size_t)(most > 2 ? most : 2));
    if (!ranks)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout");
    for (int i = 0; i < m->tp; i++)
        ranks[i] = tsr_mesh_rank(m, i, m->pp_rank, m->dp_rank);
    int rc = ops->group_open(net->comm, &net->tp, "tp", ranks, m->tp, TSR_TRAFFIC_TP);
    for (int i = 0; i < m->pp; i++)
        ranks[i] = tsr_mesh_rank(m, m->tp_rank, i, m->dp_rank);
    if (rc == 0)
        rc = ops->group_open(net->comm, &net->pp, "pp", ranks, m->pp, TSR_TRAFFIC_PP);
    for (int i = 0; i < m->dp; i++)
        ranks[i] = tsr_mesh_rank(m, m->tp_rank, m->pp_rank, i);
    if (rc == 0)
        rc = ops->group_open(net->comm, &net->dp, "dp", ranks, m->dp, TSR_TRAFFIC_DP);
    bool end = m->pp > 1 && (m->pp_rank == 0 || m->pp_rank == m->pp - 1);
    ranks[0] = end ? tsr_mesh_rank(m, m->tp_rank, 0, m->dp_rank) : m->rank;
    ranks[1] = tsr_mesh_rank(m, m->tp_rank, m->pp - 1, m->dp_rank);
    if (rc == 0)
        rc = ops->group_open(net->comm, &net->embed, "embed", ranks, end ? 2 : 1, TSR_TRAFFIC_PP);
    free(ranks);
    return rc;
}

// What the arrays on the stack of dist hold.
int tsr_net_check_limits(const struct tsr_mesh *m) {
    if (m->dp > TSR_MAX_DP || m->V > TSR_MAX_PIECES || m->W / m->dp > TSR_MAX_PIECES)
        return tsr_fail(TSR_ECONFIG,
                        "parallel: expected dp of at most %d, virtual_shards and virtual_replicas "
                        "/ dp of at most %d, found %d, %d and %d",
                        TSR_MAX_DP, TSR_MAX_PIECES, m->dp, m->V, m->W / m->dp);
    if (m->chunks > TSR_MAX_CHUNKS)
        return tsr_fail(TSR_ECONFIG, "parallel.chunks: expected at most %d, found %d",
                        TSR_MAX_CHUNKS, m->chunks);
    return 0;
}

int tsr_net_check_device(const struct tsr_ctx *ctx, const struct tsr_model *m) {
    return ctx->ops->check_heads ? ctx->ops->check_heads(ctx, m->head_dim) : 0;
}

static int open_tables(struct tsr_net *net) {
    TSR_TRY(tsr_net_check_limits(&net->mesh));
    TSR_TRY(tsr_net_check_device(net->ctx, net->m));
    TSR_TRY(tsr_tensor_table_build(&net->tensors, net->m));
    TSR_TRY(tsr_layout_open(net));
    net->params = calloc((size_t)net->tensors.n + 1, sizeof *net->params);
    net->layer = calloc((size_t)net->m->n_layers, sizeof *net->layer);
    if (!net->params || !net->layer)
        return tsr_fail(TSR_ENOMEM, "no memory for the table of parameters");
    list_params(net);
    count_sums(net);
    for (int i = 0; i < net->n_params; i++)
        TSR_TRY(own_slices(net, &net->params[i]));
    return 0;
}

static int open_memory(struct tsr_net *net, int64_t positions) {
    TSR_TRY(allocate(net));
    if (net->opt.training) {
        TSR_TRY(tsr_step_sums_open(net));
        TSR_TRY(tsr_zero_open(net));
    }
    return tsr_net_rope(net, positions);
}

int tsr_net_open(struct tsr_net *net, struct tsr_ctx *ctx, struct tsr_comm *comm,
                 const struct tsr_mesh *mesh, const struct tsr_model *m,
                 const struct tsr_net_opt *opt, int64_t positions) {
    memset(net, 0, sizeof *net);
    net->ctx = ctx;
    net->comm = comm;
    net->mesh = *mesh;
    net->m = m;
    net->opt = *opt;
    TSR_ASSERT(mesh->chunks >= 1);
    TSR_TRY(tsr_agree(ctx, comm, open_tables(net)));
    TSR_TRY(open_groups(net));
    return tsr_agree(ctx, comm, open_memory(net, positions));
}

void tsr_net_close(struct tsr_net *net) {
    const struct tsr_ops *ops = net->ctx->ops;
    tsr_zero_close(net);
    tsr_step_sums_close(net);
    ops->free(net->ctx, net->weights, net->weights_bytes);
    ops->free(net->ctx, net->gradients, net->gradients_bytes);
    ops->free(net->ctx, net->moments, net->moments_bytes);
    ops->free(net->ctx, net->masters, net->masters_bytes);
    ops->free(net->ctx, net->accumulators, net->accumulators_bytes);
    ops->free(net->ctx, net->rope,
              (size_t)(net->rope_positions * net->m->head_dim) * sizeof(float));
    struct tsr_group *groups[] = {&net->embed, &net->dp, &net->pp, &net->tp};
    for (int i = 0; i < 4; i++)
        net->comm->ops->group_close(net->comm, groups[i]);
    for (int i = 0; i < net->n_params; i++)
        free(net->params[i].slices);
    free(net->params);
    free(net->layer);
    tsr_layout_close(net);
    tsr_tensor_table_free(&net->tensors);
}
