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

// Final norm, logits and loss of y (Nl, C); losses (N) on the host, nats per token, 0 where masked.
// When dh isn't NULL: it becomes the gradient of the norm's output (Nl, C), and the head's weight
// gradient is added up; the gradient of a token's loss is `scale`.
int tsr_head_forward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                     struct tsr_ends *e, const tsr_elem *y, float *mean, float *rstd,
                     float *host_loss, tsr_elem *dh, float scale);

// Logits of `n` rows of h (n, C): (n, vocabulary rows held).
int tsr_head_logits(struct tsr_net *net, tsr_elem *logits, const tsr_elem *h, int n);

#endif
