#include "dist/traffic.h"

#include "core/model.h"
#include "core/tensor.h"

static uint64_t elem_bytes(const struct tsr_run *run) { // of activations and weights
    return run->train.precision == TSR_BF16 ? 2 : 4;
}

// Elements that the ranks of one copy hold, over all of them.
struct held {
    uint64_t weights;   // gathered: each tensor with a gradient, once for each rank that holds it
    uint64_t gradients; // summed: tied embeddings have two
    uint64_t vectors;   // of norms and row-parallel biases, counted once
};

static bool is_token_sum(const struct tsr_tensor *t) {
    return t->hf_ndim == 1 && t->split == TSR_SPLIT_NONE;
}

static void count_held(struct held *h, const struct tsr_tensor_table *tt, const struct tsr_model *m,
                       const struct tsr_mesh *mesh) {
    *h = (struct held){0};
    for (int i = 0; i < tt->n; i++) {
        const struct tsr_tensor *t = &tt->t[i];
        uint64_t n = 0;
        if (t->frozen)
            continue;
        for (int r = 0; r < mesh->tp; r++)
            n += (uint64_t)tsr_region_elems(tsr_tensor_shard(t, mesh->V, r, mesh->tp));
        bool tied = m->tied && t->kind == TSR_T_TOK_EMBED;
        h->weights += tied && mesh->pp > 1 ? 2 * n : n;
        h->gradients += tied ? 2 * n : n;
        if (is_token_sum(t))
            h->vectors += (uint64_t)t->rows;
    }
}

// KV heads whose query heads lie on more than one rank.
static uint64_t shared_kv_heads(const struct tsr_model *m, const struct tsr_mesh *mesh) {
    int64_t group = m->n_heads / m->n_kv_heads;
    uint64_t shared = 0;
    for (int64_t h = 0; h < m->n_kv_heads; h++) {
        int holders = 0;
        for (int r = 0; r < mesh->tp; r++) {
            struct tsr_range q = tsr_piece_of_rank(m->n_heads, mesh->V, r, mesh->tp);
            holders += q.lo < (h + 1) * group && q.hi > h * group;
        }
        shared += holders > 1;
    }
    return shared;
}

static uint64_t tp_bytes(const struct tsr_run *run, const struct tsr_model *m,
                         const struct tsr_mesh *mesh, const struct held *h) {
    uint64_t K = (uint64_t)(run->train.global_batch * run->data.seq_len);
    uint64_t C = (uint64_t)m->hidden, L = (uint64_t)m->n_layers, D = (uint64_t)m->head_dim;
    uint64_t e = elem_bytes(run); // sums are fp32, what is gathered is of the layers' type
    bool sequence = run->parallel.sequence;
    uint64_t blocks = sequence ? 16 + 6 * e : 32;
    if (run->train.recompute == TSR_RECOMPUTE_FULL)
        blocks += sequence ? 8 + 2 * e : 16;
    uint64_t n = L * (blocks * K * C + 16 * K * shared_kv_heads(m, mesh) * D);
    n += (sequence ? 8 + 2 * e : 16) * K * C + 24 * K;
    n += run->parallel.sequence ? 8 * (uint64_t)mesh->W * h->vectors : 0;
    return n * (uint64_t)(mesh->tp - 1);
}

static uint64_t pp_bytes(const struct tsr_run *run, const struct tsr_model *m,
                         const struct tsr_mesh *mesh) {
    uint64_t K = (uint64_t)(run->train.global_batch * run->data.seq_len), C = (uint64_t)m->hidden;
    if (mesh->pp == 1)
        return 0;
    uint64_t n = 2 * elem_bytes(run) * K * C * (uint64_t)(mesh->pp * mesh->chunks - 1);
    n *= run->parallel.sequence ? 1 : (uint64_t)mesh->tp;
    return n + (m->tied ? 8 * (uint64_t)m->vocab * C : 0);
}

int tsr_traffic_of(struct tsr_step_bytes *out, const struct tsr_run *run, const struct tsr_model *m,
                   const struct tsr_mesh *mesh) {
    struct tsr_tensor_table tt;
    struct held h;
    int rc = tsr_tensor_table_build(&tt, m);
    if (rc < 0)
        return rc;
    count_held(&h, &tt, m, mesh);
    tsr_tensor_table_free(&tt);
    *out = (struct tsr_step_bytes){.tp = tp_bytes(run, m, mesh, &h),
                                   .pp = pp_bytes(run, m, mesh),
                                   .dp = (uint64_t)(mesh->dp - 1) *
                                         (4 * h.gradients + elem_bytes(run) * h.weights)};
    return 0;
}

double tsr_bubble_share(const struct tsr_run *run, const struct tsr_mesh *mesh) {
    int64_t m = run->train.global_batch / mesh->dp / run->train.micro_batch;
    double idle = mesh->pp - 1;
    return idle / ((double)(m * mesh->chunks) + idle);
}
