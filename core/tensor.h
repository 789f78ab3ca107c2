// The one table of a model's tensors. Layout, initialisation, sharding, checkpoints, the optimizer
// and import/export all read it; nothing else knows a tensor by position or by name.
//
// A canonical tensor is a matrix (rows = out features, cols = in features) or a vector (cols = 1).
// Hugging Face's GPT-2 stores linears transposed (Conv1D) and q, k, v fused; hf_* say how the
// canonical tensor lies in the file.
#ifndef TSR_CORE_TENSOR_H
#define TSR_CORE_TENSOR_H

#include "core/model.h"
#include "core/pieces.h"

enum tsr_kind {
    TSR_T_TOK_EMBED, // (vocab, C)
    TSR_T_POS_EMBED, // (max_positions, C)
    TSR_T_NORM1_W,   // (C) before attention (GPT-1: after it)
    TSR_T_NORM1_B,
    TSR_T_Q_W, // (Hq D, C)
    TSR_T_Q_B,
    TSR_T_K_W, // (Hkv D, C)
    TSR_T_K_B,
    TSR_T_V_W, // (Hkv D, C)
    TSR_T_V_B,
    TSR_T_O_W, // (C, Hq D)
    TSR_T_O_B,
    TSR_T_NORM2_W,
    TSR_T_NORM2_B,
    TSR_T_GATE_W, // (F, C), gated models only
    TSR_T_GATE_B,
    TSR_T_UP_W, // (F, C); the only first FFN product of an ungated model
    TSR_T_UP_B,
    TSR_T_DOWN_W, // (C, F)
    TSR_T_DOWN_B,
    TSR_T_FINAL_W, // final norm
    TSR_T_FINAL_B,
    TSR_T_LM_HEAD, // (vocab, C), absent when tied
    TSR_N_KINDS
};

enum tsr_split { TSR_SPLIT_NONE, TSR_SPLIT_ROWS, TSR_SPLIT_COLS };
enum tsr_unit { TSR_UNIT_NONE, TSR_UNIT_Q_HEAD, TSR_UNIT_KV_HEAD, TSR_UNIT_FFN, TSR_UNIT_VOCAB };
enum tsr_init { TSR_INIT_ZERO, TSR_INIT_ONE, TSR_INIT_NORMAL, TSR_INIT_SINUSOID };

struct tsr_tensor {
    enum tsr_kind kind;
    int layer; // -1 outside the blocks
    int64_t rows, cols;
    enum tsr_split split; // which dimension tensor parallelism cuts
    enum tsr_unit unit;   // and into what
    int64_t n_units, unit_size;
    int64_t group; // query heads per KV head (unit KV_HEAD), else 1
    bool decay;    // weight decay applies
    bool frozen;   // never updated (sinusoidal positions)
    enum tsr_init init;
    double init_std;
    char name[112];    // unique; the HF name, with ".q", ".k", ".v" for a part of a fused tensor
    char hf_name[112]; // in model files
    bool hf_transposed;
    int64_t hf_offset;   // first row (canonical) inside the fused file tensor
    int64_t hf_out_rows; // canonical rows of the whole file tensor (= rows unless fused)
    int hf_ndim;         // 1 or 2
};

struct tsr_tensor_table {
    int n;
    struct tsr_tensor *t;
    int64_t n_layers;
    int *index; // (n_layers + 1, TSR_N_KINDS): entry or -1; the last row is outside the blocks
};

struct tsr_region { // of a canonical tensor
    int64_t r0, r1, c0, c1;
};

int tsr_tensor_table_build(struct tsr_tensor_table *tt, const struct tsr_model *m);
void tsr_tensor_table_free(struct tsr_tensor_table *tt);

// The entry of (layer, kind), or NULL when the model has none; layer -1: outside the blocks.
const struct tsr_tensor *tsr_tensor_find(const struct tsr_tensor_table *tt, int layer,
                                         enum tsr_kind kind);
const struct tsr_tensor *tsr_tensor_by_name(const struct tsr_tensor_table *tt, const char *name);

// What virtual piece v of V owns: disjoint, and together the whole tensor. An unsplit tensor
// belongs to piece 0. A KV head belongs to the piece of its first query head.
struct tsr_region tsr_tensor_piece(const struct tsr_tensor *t, int v, int V);

// What rank `rank` of `tp` holds: its pieces, plus KV heads that its query heads need although an
// earlier rank owns them; the whole of an unsplit tensor.
struct tsr_region tsr_tensor_shard(const struct tsr_tensor *t, int V, int rank, int tp);

static inline int64_t tsr_region_elems(struct tsr_region r) {
    return (r.r1 - r.r0) * (r.c1 - r.c0);
}

// KV heads that query heads [q.lo, q.hi) read.
static inline struct tsr_range tsr_kv_of_q(struct tsr_range q, int64_t group) {
    if (q.hi <= q.lo)
        return (struct tsr_range){0, 0};
    return (struct tsr_range){q.lo / group, (q.hi - 1) / group + 1};
}

#endif
