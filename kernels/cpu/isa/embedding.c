// Token and position embeddings. The table may be one rank's rows of the vocabulary.
#include <stdlib.h>
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/tree.h"

struct embed_job {
    struct tsr_split split;
    float *x;           // (N, C)
    const int32_t *ids; // (N) token ids or positions
    const float *table; // (n_rows, C)
    int row0, n_rows;
    int c;
};

// A token that picked a row of the table held here.
struct pick {
    int row, chain, token;
};

struct embed_bwd_job {
    struct tsr_split split;   // of columns
    float *dtable;            // (n_table, C)
    const float *dx;          // (N, C)
    const struct pick *picks; // (n_picks), by row, chain, token
    int64_t n_picks;
    int n_chains;
    int c;
};

// to += from, or to = from + 0 (no -0 comes out, whatever the shard) when `fresh`.
static void add_row(float *to, const float *from, int n, bool fresh) {
    for (int j = 0; j < n; j += 16) {
        v16 old = fresh ? v16_zero() : v16_load_tail(to + j, n - j, 0.0f);
        v16_store_tail(to + j, n - j, v16_add(old, v16_load_tail(from + j, n - j, 0.0f)));
    }
}

static void embed_part(void *arg, int part, int thread) {
    (void)thread;
    const struct embed_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++) {
        int64_t row = (int64_t)q->ids[i] - q->row0;
        if (row >= 0 && row < q->n_rows)
            add_row(q->x + i * q->c, q->table + row * q->c, q->c, true);
        else
            memset(q->x + i * q->c, 0, (size_t)q->c * sizeof(float));
    }
}

static void position_part(void *arg, int part, int thread) {
    (void)thread;
    const struct embed_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++)
        add_row(q->x + i * q->c, q->table + (int64_t)q->ids[i] * q->c, q->c, false);
}

static int compare_picks(const void *a, const void *b) {
    const struct pick *p = a, *q = b;
    if (p->row != q->row)
        return p->row < q->row ? -1 : 1;
    if (p->chain != q->chain)
        return p->chain < q->chain ? -1 : 1;
    return (p->token > q->token) - (p->token < q->token);
}

// s + the chain of dx(token, j ..) over n picks.
V16_FN v16 chain_of(const struct embed_bwd_job *q, v16 s, const struct pick *p, int64_t n, int j) {
    for (int64_t k = 0; k < n; k++)
        s = v16_add(s, v16_load_tail(q->dx + (int64_t)p[k].token * q->c + j, q->c - j, 0.0f));
    return s;
}

// Columns [j, j + 16) of one table row, which `n` picks feed.
static void sum_picks(const struct embed_bwd_job *q, const struct pick *p, int64_t n, int j) {
    float *to = q->dtable + (int64_t)p->row * q->c + j;
    v16 old = v16_load_tail(to, q->c - j, 0.0f);
    if (q->n_chains == 1) {
        v16_store_tail(to, q->c - j, chain_of(q, old, p, n, j));
        return;
    }
    struct v16_tree tree;
    tree.top = 0;
    for (int64_t k = 0, end; k < n; k = end) {
        for (end = k + 1; end < n && p[end].chain == p[k].chain;)
            end++;
        v16_tree_leaf(&tree, (unsigned)p[k].chain, chain_of(q, v16_zero(), p + k, end - k, j));
    }
    v16_store_tail(to, q->c - j, v16_add(old, v16_tree_root(&tree)));
}

// Each thread walks all picks for its columns, so a chain is never cut.
static void embed_bwd_part(void *arg, int part, int thread) {
    (void)thread;
    const struct embed_bwd_job *q = arg;
    struct tsr_range cols = tsr_split_span(q->split, part, q->c);
    for (int64_t k = 0, end; k < q->n_picks; k = end) {
        for (end = k + 1; end < q->n_picks && q->picks[end].row == q->picks[k].row;)
            end++;
        for (int j = (int)cols.lo; j < cols.hi; j += 16)
            sum_picks(q, q->picks + k, end - k, j);
    }
}

int TSR_FN(tsr_embedding)(struct tsr_ctx *ctx, tsr_elem *x, const int32_t *ids, const tsr_elem *wte,
                          int row0, int n_rows, int n, int c) {
    struct embed_job q = {tsr_split_of(ctx, n, c), x, ids, wte, row0, n_rows, c};
    tsr_pool_run(ctx->stream, q.split.n_parts, embed_part, &q);
    return 0;
}

int TSR_FN(tsr_embedding_bwd)(struct tsr_ctx *ctx, float *dtable, const int32_t *ids,
                              const tsr_elem *dx, const struct tsr_rows *rows, int n_rows,
                              int n_chains, int row0, int n_table, int c) {
    size_t n_tokens = 0;
    for (int r = 0; r < n_rows; r++)
        n_tokens += (size_t)rows[r].n;
    if (n_tokens == 0)
        return 0;
    struct pick *picks = tsr_pool_shared(ctx->stream, n_tokens * sizeof *picks);
    if (picks == NULL)
        return tsr_fail(TSR_ENOMEM, "cannot allocate %zu bytes of memory",
                        n_tokens * sizeof *picks);
    if (tsr_pool_is_dry(ctx->stream)) // ids are the device's
        return 0;
    int64_t n = 0;
    for (int r = 0; r < n_rows; r++) {
        TSR_ASSERT(rows[r].chain >= 0 && rows[r].chain < n_chains);
        for (int i = rows[r].row; i < rows[r].row + rows[r].n; i++) {
            int64_t row = (int64_t)ids[i] - row0;
            if (row >= 0 && row < n_table)
                picks[n++] = (struct pick){(int)row, rows[r].chain, i};
        }
    }
    qsort(picks, (size_t)n, sizeof *picks, compare_picks);
    struct embed_bwd_job q = {
        .dtable = dtable, .dx = dx, .picks = picks, .n_picks = n, .n_chains = n_chains, .c = c};
    q.split = tsr_split_elems(ctx, (size_t)c, (int)(n < 1 << 20 ? n : 1 << 20));
    tsr_pool_run(ctx->stream, q.split.n_parts, embed_bwd_part, &q);
    return 0;
}

int TSR_FN(tsr_position)(struct tsr_ctx *ctx, tsr_elem *x, const int32_t *pos, const tsr_elem *wpe,
                         int n, int c) {
    struct embed_job q = {tsr_split_of(ctx, n, c), x, pos, wpe, 0, 0, c};
    tsr_pool_run(ctx->stream, q.split.n_parts, position_part, &q);
    return 0;
}
