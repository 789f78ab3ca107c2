// How a canonical tensor lies in a file: as it is, or, in Hugging Face's GPT-2, transposed and
// fused with others (Conv1D). Reading and writing regions go through the same description.
#ifndef TSR_CORE_PLACE_H
#define TSR_CORE_PLACE_H

#include <stdbool.h>
#include <stdint.h>
#include "core/safetensors.h"
#include "core/tensor.h"

struct tsr_place {
    int64_t rows, cols; // of the tensor in the file; a vector is (rows, 1)
    int ndim;           // 1 or 2
    int64_t offset;     // this tensor's first canonical row among those fused in the file
    bool transposed;    // the file holds (in, out)
};

struct tsr_place tsr_place_hf(const struct tsr_tensor *t);        // in model files
struct tsr_place tsr_place_canonical(const struct tsr_tensor *t); // in optimizer files

// Where a canonical region of `t` lies in the file's matrix. A region outside of the tensor is our
// bug.
struct tsr_region tsr_place_region(const struct tsr_place *p, const struct tsr_tensor *t,
                                   struct tsr_region r);

// Checks an entry's shape and that its dtype can be read as weights; TSR_EMODEL names `path` and
// the tensor.
int tsr_place_check(const struct tsr_place *p, const struct tsr_st_entry *e, const char *path);

// Reads a canonical region of `t` as fp32 into out (r1 - r0, c1 - c0), contiguous.
int tsr_place_read(const struct tsr_place *p, const struct tsr_tensor *t,
                   const struct tsr_st_file *f, const struct tsr_st_entry *e, struct tsr_region r,
                   float *out);

// Bytes of the file that tsr_place_read reads for it.
uint64_t tsr_place_bytes(const struct tsr_place *p, const struct tsr_tensor *t,
                         const struct tsr_st_entry *e, struct tsr_region r);

// dst (cols, ld_dst) = transpose of src (rows, ld_src), in square tiles that stay in the cache.
void tsr_transpose(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int64_t rows,
                   int64_t cols);

#endif
