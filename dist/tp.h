// Tensor parallelism as two named operators. At tp = 1 both are no-ops, so the model has no
// `if (tp)`. Under sequence parallelism (Korthikanti et al. 2022, section 4.2.2) rows between
// blocks are cut over the ranks, and the operators gather and scatter them.
//
//   operator    forward                       backward
//   tp_copy     identity | gather rows        tree sum | tree sum, scatter rows
//   tp_reduce   tree sum | sum, scatter rows  identity | gather rows
#ifndef TSR_DIST_TP_H
#define TSR_DIST_TP_H

#include "dist/batch.h"

enum { TSR_MAX_TP = 256 };

// tp_copy forward, tp_reduce backward: *out is (N, C): x (Nl, C) itself when nothing is gathered,
// else `whole`. staged: (N, C) of scratch, unused without sequence parallelism.
int tsr_tp_rows(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x, tsr_elem *whole,
                tsr_elem *staged, const tsr_elem **out);

// tp_reduce forward, tp_copy backward: the first Nl rows of `sum` become the tree over ranks of sum
// (N, C). A sum is fp32 until it is complete, whatever the layers' type: out (Nl, C), which may be
// sum itself in fp32, is then that, rounded once; NULL: not yet. staged: (N, C) of scratch, unused
// without sequence parallelism. At tp = 1 nothing happens: the product has rounded by itself.
int tsr_tp_sum(struct tsr_net *net, const struct tsr_batch *b, float *sum, tsr_elem *out,
               float *staged);

// The same in two halves, between which the ranks' exchange goes on beside computation; x, staged
// and the rows of sum stay untouched until the second. A sum may be begun part by part, of one of
// tsr_tp_part's ranges each or of all rows, in order; it is complete when all are ended.
int tsr_tp_rows_begin(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x,
                      tsr_elem *staged, struct tsr_request *r);
int tsr_tp_rows_end(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x,
                    tsr_elem *whole, tsr_elem *staged, struct tsr_request *r, const tsr_elem **out);
int tsr_tp_sum_begin(struct tsr_net *net, const struct tsr_batch *b, struct tsr_range rows,
                     float *sum, float *staged, struct tsr_request *r);
int tsr_tp_sum_end(struct tsr_net *net, const struct tsr_batch *b, float *sum, tsr_elem *out,
                   struct tsr_request *r);

// In how many parts a product should be made whose sum over ranks then is begun part by part: two
// where the exchange of one hides behind the product of the other. Part i: rows [lo, hi) of N.
enum { TSR_TP_PARTS = 2 };
int tsr_tp_parts(const struct tsr_net *net, const struct tsr_batch *b);
struct tsr_range tsr_tp_part(const struct tsr_net *net, const struct tsr_batch *b, int i, int n);

#endif
