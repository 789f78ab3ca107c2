// Whether a run can be dealt out over ranks, and what would fit when it can't.
#include <stdio.h>
#include "core/error.h"
#include "core/model.h"
#include "core/pieces.h"
#include "core/run_private.h"

enum { DEFAULT_SHARDS = 8, MAX_REPLICAS = 8 };

// A list of numbers for a message: "1, 2, 4".
struct choices {
    char text[160];
    size_t at;
};

static void add_choice(struct choices *c, int64_t n) {
    if (c->at + 24 < sizeof c->text)
        c->at += (size_t)snprintf(c->text + c->at, sizeof c->text - c->at, "%s%lld",
                                  c->at ? ", " : "", (long long)n);
}

// 1, and n, n/2, n/4, … down to the odd part, smallest first: the ranks that n pieces can be dealt
// to.
static void add_shares(struct choices *c, int64_t n) {
    int64_t odd = n;
    while (odd % 2 == 0)
        odd /= 2;
    if (odd > 1)
        add_choice(c, 1);
    for (; odd <= n; odd *= 2)
        add_choice(c, odd);
}

void tsr_run_pieces(const struct tsr_run *r, int64_t tp, int64_t dp, int64_t *V, int64_t *W) {
    *V = r->parallel.virtual_shards ? r->parallel.virtual_shards : DEFAULT_SHARDS;
    *W = r->parallel.virtual_replicas;
    if (!r->parallel.exact) {
        *V = tp;
        *W = dp;
    } else if (*W == 0) {
        for (*W = MAX_REPLICAS; r->train.global_batch % *W != 0;)
            *W /= 2;
    }
}

static int check_shards(int64_t tp, int64_t V) {
    struct choices c = {0};
    if (tsr_pieces_deal(V, tp))
        return 0;
    add_shares(&c, V);
    int64_t fit = tp;
    while (fit < DEFAULT_SHARDS)
        fit *= 2;
    return tsr_fail(TSR_ECONFIG,
                    "parallel.tp: %lld ranks can't share %lld virtual shards (V / tp must be a "
                    "power of two, or tp 1): tp can be %s, or set parallel.virtual_shards to %lld",
                    (long long)tp, (long long)V, c.text, (long long)fit);
}

static int check_replicas(const struct tsr_run *r, int64_t dp, int64_t W) {
    int64_t batch = r->train.global_batch;
    struct choices c = {0};
    if (batch % W != 0)
        return tsr_fail(TSR_ECONFIG,
                        "train.global_batch: %lld sequences can't be cut into %lld equal pieces "
                        "(%s): make it a multiple of %lld",
                        (long long)batch, (long long)W,
                        r->parallel.exact ? "parallel.virtual_replicas"
                                          : "one per data-parallel rank",
                        (long long)W);
    if (dp == 0 || tsr_pieces_deal(W, dp))
        return 0;
    add_shares(&c, W);
    if (batch % dp == 0) {
        int64_t fit = dp;
        while (fit < MAX_REPLICAS && batch % (2 * fit) == 0)
            fit *= 2;
        return tsr_fail(TSR_ECONFIG,
                        "parallel.dp: %lld ranks can't share the %lld pieces of the global batch "
                        "(W / dp must be a power of two, or dp 1): dp can be %s, or set "
                        "parallel.virtual_replicas to %lld",
                        (long long)dp, (long long)W, c.text, (long long)fit);
    }
    return tsr_fail(TSR_ECONFIG,
                    "parallel.dp: %lld ranks can't share a global batch of %lld sequences: dp can "
                    "be %s, or make train.global_batch a multiple of %lld",
                    (long long)dp, (long long)batch, c.text, (long long)dp);
}

// A micro-batch of several pieces is a subtree of a rank's: a power of two of them, or all.
static bool micro_fits(int64_t micro, int64_t piece, int64_t share, int64_t pp) {
    bool whole = micro % piece == 0 && (micro == share || tsr_is_pow2(micro / piece));
    return share % micro == 0 && (piece % micro == 0 || whole) && share / micro % pp == 0;
}

// Micro-batches of one rank, of `share` sequences in pieces; pp > 1: their number must be a
// multiple of pp, for the interleaved schedule.
static int check_micro(const struct tsr_run *r, int64_t dp, int64_t W, int64_t pp) {
    int64_t share = r->train.global_batch / dp, piece = r->train.global_batch / W;
    int64_t micro = r->train.micro_batch;
    struct choices c = {0};
    if (micro_fits(micro, piece, share, pp))
        return 0;
    for (int64_t m = 1; m <= share && m <= 4096; m++)
        if (micro_fits(m, piece, share, pp))
            add_choice(&c, m);
    if (micro_fits(micro, piece, share, 1))
        return tsr_fail(TSR_ECONFIG,
                        "parallel.schedule: interleaved needs parallel.pp (%lld) to divide the "
                        "number of micro-batches of a rank (%lld): %s%s",
                        (long long)pp, (long long)(share / micro),
                        c.at ? "train.micro_batch can be " : "raise train.global_batch", c.text);
    return tsr_fail(TSR_ECONFIG,
                    "train.micro_batch: %lld doesn't fit the %lld sequences of a rank in pieces of "
                    "%lld: %s%s",
                    (long long)micro, (long long)share, (long long)piece,
                    c.at ? "it can be " : "raise train.global_batch", c.text);
}

int tsr_run_shards(const struct tsr_run *r, int64_t tp, int64_t dp, int *V, int *W) {
    int64_t shards, replicas;
    tsr_run_pieces(r, tp, dp, &shards, &replicas);
    TSR_TRY(check_shards(tp, shards));
    TSR_TRY(check_replicas(r, dp, replicas));
    TSR_TRY(check_micro(r, dp, replicas, 1));
    *V = (int)shards;
    *W = (int)replicas;
    return 0;
}

int tsr_run_check_world(const struct tsr_run *r, int64_t world, int64_t *dp) {
    int64_t tp = r->parallel.tp, pp = r->parallel.pp, copy = tp * pp;
    int V, W;
    if (r->parallel.dp > 0 && world != copy * r->parallel.dp)
        return tsr_fail(TSR_ECONFIG,
                        "expected tp * pp * dp = %lld * %lld * %lld = %lld ranks, found %lld",
                        (long long)tp, (long long)pp, (long long)r->parallel.dp,
                        (long long)(copy * r->parallel.dp), (long long)world);
    if (world < copy || world % copy != 0)
        return tsr_fail(TSR_ECONFIG,
                        "expected a multiple of tp * pp = %lld * %lld = %lld ranks, found %lld",
                        (long long)tp, (long long)pp, (long long)copy, (long long)world);
    *dp = world / copy;
    TSR_TRY(tsr_run_shards(r, tp, *dp, &V, &W));
    return check_micro(r, *dp, W, r->parallel.schedule == TSR_PIPE_INTERLEAVED ? pp : 1);
}

int tsr_run_check_layout(const struct tsr_run *r) {
    int64_t V, W, dp;
    if (r->parallel.dp > 0)
        return tsr_run_check_world(r, r->parallel.tp * r->parallel.pp * r->parallel.dp, &dp);
    tsr_run_pieces(r, r->parallel.tp, 1, &V, &W);
    TSR_TRY(check_shards(r->parallel.tp, V));
    TSR_TRY(check_replicas(r, 0, W));
    return check_micro(r, 1, W, 1);
}

int tsr_run_check_model(const struct tsr_run *r, const struct tsr_model *m, int64_t tp,
                        int64_t pp) {
    int64_t stages = pp * r->parallel.chunks;
    if (m->n_layers < stages)
        return tsr_fail(TSR_ECONFIG,
                        "parallel.pp: %lld pipeline stages (pp %lld * chunks %lld) need as many "
                        "layers, the model has %lld",
                        (long long)stages, (long long)pp, (long long)r->parallel.chunks,
                        (long long)m->n_layers);
    if (m->n_heads < tp || m->ffn < tp || m->vocab < tp)
        return tsr_fail(TSR_ECONFIG,
                        "parallel.tp: %lld ranks can't share %lld heads, an FFN of %lld and a "
                        "vocabulary of %lld: each needs at least one of each",
                        (long long)tp, (long long)m->n_heads, (long long)m->ffn,
                        (long long)m->vocab);
    if (m->position != TSR_POS_ROTARY && r->data.seq_len > m->max_positions)
        return tsr_fail(TSR_ECONFIG,
                        "data.seq_len: expected at most the model's %lld positions, "
                        "found %lld",
                        (long long)m->max_positions, (long long)r->data.seq_len);
    return 0;
}
