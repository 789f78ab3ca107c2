// The ends of the model: vocabulary-parallel embedding and cross-entropy.
#ifndef TSR_DIST_ENDS_H
#define TSR_DIST_ENDS_H

#include "dist/stage.h"

// x (Nl, C) = dropout(wte[ids] + wpe[pos]).
int tsr_embed_forward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                      bool training, tsr_elem *x);
// Gradients of wte and wpe from dx (Nl, C), which is changed by the dropout mask in place.
int tsr_embed_backward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                       tsr_elem *dx);

// Final norm, logits and loss of y (Nl, C); b->loss has the losses after the next sync, nats per
// token, 0 where masked.
// When dh isn't NULL: it becomes the gradient of the norm's output (Nl, C), and the head's weight
// gradient is added up; the gradient of a token's loss is `scale`.
int tsr_head_forward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                     struct tsr_ends *e, const tsr_elem *y, float *mean, float *rstd, tsr_elem *dh,
                     float scale);

// How many rows of logits stand at once, from row `at` of the micro-batch on: whole sequences, or
// parts of one that begin where no product's group of terms is cut. No later stretch is longer than
// the first.
int tsr_head_rows(const struct tsr_batch *b, int at);

// Logits of `n` rows of h (n, C): (n, vocabulary rows held).
int tsr_head_logits(struct tsr_net *net, tsr_elem *logits, const tsr_elem *h, int n);

#endif
