// The weights of a Hugging Face model directory as one thing, whatever its files.
#ifndef TSR_CORE_WEIGHTS_H
#define TSR_CORE_WEIGHTS_H

#include "core/model.h"
#include "core/safetensors.h"
#include "core/tensor.h"

struct tsr_weights;

// Opens DIR/model.safetensors, or the shards that DIR/model.safetensors.index.json names, and
// checks every tensor against the table. Names with and without the base model's prefix
// ("transformer." for GPT, "model." for Llama) are read; `rotary_emb.inv_freq`, `attn.bias`,
// `attn.masked_bias` and, in a tied model, `lm_head.weight` are left alone. Any other missing,
// extra or misshapen tensor is TSR_EMODEL and named. The table must outlive the weights.
int tsr_weights_open(struct tsr_weights **out, const char *dir, const struct tsr_model *m,
                     const struct tsr_tensor_table *tt);
void tsr_weights_close(struct tsr_weights *w); // NULL is fine

// Reads a region of the table's tensor `t` as fp32 into out (r1 - r0, c1 - c0), contiguous, in the
// canonical (out, in) orientation, whatever the file's.
int tsr_weights_read(const struct tsr_weights *w, const struct tsr_tensor *t,
                     struct tsr_region region, float *out);

// The file that holds the table's tensor `t`, and its entry there.
const struct tsr_st_file *tsr_weights_file(const struct tsr_weights *w, const struct tsr_tensor *t,
                                           const struct tsr_st_entry **entry);

// All files, the same ones in the same order wherever the directory is opened. They may be given a
// source to be read from.
struct tsr_st_file *tsr_weights_files(struct tsr_weights *w, int *n);

#endif
