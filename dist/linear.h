// Linear layers of a shard: the products of a column-parallel and a row-parallel weight, forward
// and backward, with the virtual pieces that each of them cuts (docs/exactness.md).
#ifndef TSR_DIST_LINEAR_H
#define TSR_DIST_LINEAR_H

#include "dist/batch.h"

// Columns [bound[v] unit, bound[v+1] unit) of a row-parallel input belong to local piece v.
struct tsr_cut {
    const int *bound;
    int unit;
};

// y (n, rows) = x (n, cols) w^T + bias. One chain over cols: every column of y is a whole sum.
int tsr_column_linear(struct tsr_net *net, tsr_elem *y, const tsr_elem *x, int n,
                      const struct tsr_param *w, const struct tsr_param *bias);

// y (n, rows) = x (n, cols) w^T summed by pieces of cols; with bias and residual (n, rows) when
// given. Not yet summed over ranks. f32: y is fp32 whatever the layers' type, for a sum that isn't
// complete; then without bias and residual.
int tsr_row_linear(struct tsr_net *net, void *y, bool f32, const tsr_elem *x, int n,
                   const struct tsr_param *w, struct tsr_cut cut, const struct tsr_param *bias,
                   const tsr_elem *residual);

// dx (n, cols) = dy (n, rows) w of a row-parallel weight: nothing is cut.
int tsr_row_linear_dx(struct tsr_net *net, tsr_elem *dx, const tsr_elem *dy, int n,
                      const struct tsr_param *w);

// One column-parallel source of dx: piece v adds dy columns and w rows [bound[v], bound[v+1]) unit.
struct tsr_dx_source {
    const tsr_elem *dy; // (n, rows of w)
    const struct tsr_param *w;
    struct tsr_cut cut;
};
// dx (n, C) = over local pieces, the tree of one chain over the sources in order. f32: as above.
int tsr_column_linear_dx(struct tsr_net *net, void *dx, bool f32, int n,
                         const struct tsr_dx_source *sources, int n_sources);

// Gradient of w over the micro-batch, into its buffer at the batch's level: dw (rows, cols) =
// dy^T (rows, N) x (N, cols); the chain of a virtual replica runs over its sequences.
int tsr_linear_dw(struct tsr_net *net, const struct tsr_batch *b, const struct tsr_param *w,
                  const tsr_elem *dy, const tsr_elem *x);

// Gradient of the bias of a column-parallel product; NULL bias is fine.
int tsr_column_bias_grad(struct tsr_net *net, const struct tsr_batch *b,
                         const struct tsr_param *bias, const tsr_elem *dy);
// Gradient of the bias of a row-parallel product; dy (Nl, C).
int tsr_row_bias_grad(struct tsr_net *net, const struct tsr_batch *b, const struct tsr_param *bias,
                      const tsr_elem *dy);

// The level of the gradient buffers that a micro-batch writes to.
static inline int tsr_grad_level(const struct tsr_batch *b) {
    return tsr_tree_open(b->leaf);
}

#endif
