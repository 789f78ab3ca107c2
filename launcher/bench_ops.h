// What the files of `tessera bench ops` share: the shapes, the buffers, and one timed operation.
//
// Dims: N tokens, C hidden, Hq/Hkv heads, D head size, F FFN columns, V vocabulary, R rows of
// logits.
#ifndef TSR_LAUNCHER_BENCH_OPS_H
#define TSR_LAUNCHER_BENCH_OPS_H

#include <stdbool.h>
#include "core/model.h"
#include "kernels/ops.h"

enum { TSR_BENCH_HEAD_ROWS = 1024, TSR_BENCH_MAX_ROWS = 64, TSR_BENCH_BLOCK = 16 };

// One line of the report.
struct tsr_bench_line {
    const char *name;
    double seconds, flops, bytes; // of one call; flops 0: bound by memory
};

struct tsr_bench_ops {
    struct tsr_ctx *ctx;
    const struct tsr_model *m;
    int n, seq_len, n_segs, head_rows;
    size_t es;      // bytes of an element
    double limit_s; // to spend on one operation

    // On the device.
    tsr_elem *x, *x2, *y, *q, *k, *v, *dq, *dk, *dv, *f1, *f2, *f3, *logits; // (N, C), heads, F
    tsr_elem *w_c, *w_q, *w_up, *w_head, *bias; // (C), (Hq D, C), (F, C), (V, C), (F)
    float *lse, *mean, *rstd, *max, *sum_target, *loss, *grad, *master, *m1, *m2, *params, *rope;
    double *sums;
    int32_t *ids, *pos;
    size_t grad_elems;

    // Of the host.
    struct tsr_segment *segs;
    struct tsr_kv_cache cache;
    struct tsr_kv_slot *slots;
    struct tsr_rows *rows;

    double peak_gflops, copy_gbs;
    struct tsr_bench_line lines[TSR_BENCH_MAX_ROWS];
    int n_lines;
};

// Buffers with random contents. TSR_ENOMEM.
int tsr_bench_ops_open(struct tsr_bench_ops *b);
void tsr_bench_ops_close(struct tsr_bench_ops *b);

typedef int (*tsr_bench_fn)(struct tsr_bench_ops *b);

// Times `fn` and adds a line. flops and bytes: what one call can't do without.
int tsr_bench_time(struct tsr_bench_ops *b, const char *name, double flops, double bytes,
                   tsr_bench_fn fn);

// Every operation of a training step and of decoding, in turn.
int tsr_bench_ops_all(struct tsr_bench_ops *b);

#endif
