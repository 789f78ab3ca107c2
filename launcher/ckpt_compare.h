// Comparing two checkpoints tensor by tensor, for `tessera ckpt diff`.
#ifndef TSR_LAUNCHER_CKPT_COMPARE_H
#define TSR_LAUNCHER_CKPT_COMPARE_H

#include "core/checkpoint_audit.h"
#include "core/model.h"
#include "core/weights.h"

// A checkpoint opened for reading.
struct tsr_compared {
    const char *dir;
    struct tsr_model model;
    struct tsr_tensor_table table;
    struct tsr_state state;
    struct tsr_weights *weights;
    struct tsr_moments *moments;
    struct tsr_checkpoint_digests *digests;
    bool model_open, table_open, state_open;
};
int tsr_compared_open(struct tsr_compared *c,
                      const char *dir); // the caller closes, also on failure
void tsr_compared_close(struct tsr_compared *c);

enum tsr_tensor_verdict { TSR_SAME, TSR_DIFFERS, TSR_ONLY_A, TSR_ONLY_B, TSR_SHAPES };

struct tsr_tensor_difference {
    enum tsr_checkpoint_part part;
    const char *name; // canonical
    enum tsr_tensor_verdict verdict;
    bool by_digest; // the same, without reading
    int64_t shape_a[2], shape_b[2];
    int64_t n_elems, n_different; // bits differ
    double max_abs, max_rel;      // of |a - b| and |a - b| / max(|a|, |b|); INFINITY with a NaN or
                                  // infinity on one side
    int64_t row, col;             // of the first element that differs
    float a, b;                   // it
};

struct tsr_comparison {
    bool read_all; // digests aren't believed
    void *arg;
    int (*each)(void *arg, const struct tsr_tensor_difference *d);
    void (*progress)(void *arg, uint64_t n_elems, uint64_t total); // or NULL
};
// Weights (the fp32 master), m and v of every tensor of either, in the order of a's table, then
// those of b alone.
int tsr_compare(const struct tsr_compared *a, const struct tsr_compared *b,
                const struct tsr_comparison *how);

#endif
