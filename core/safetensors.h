// The safetensors format: u64 header length, JSON header, raw little-endian data.
#ifndef TSR_CORE_SAFETENSORS_H
#define TSR_CORE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include "core/io.h"

enum tsr_dtype { TSR_DT_F32, TSR_DT_F16, TSR_DT_BF16 };

struct tsr_st_entry {
    char *name;
    enum tsr_dtype dtype;
    int ndim;
    int64_t shape[4];
    uint64_t begin, end; // bytes, from the start of the data section
};

struct tsr_st_file {
    char *path;
    int fd;
    uint64_t data_offset; // of the data section in the file
    uint64_t data_size;
    struct tsr_st_entry *entries; // sorted by name
    int n;
};

// Opens and checks everything before anything is allocated by a number out of the file: header
// length against the file's size, names unique, shapes times dtype equal to the byte range, no
// overlap, no hole, no byte past the end. TSR_EMODEL names file, tensor and both numbers.
int tsr_st_open(struct tsr_st_file *f, const char *path);
void tsr_st_close(struct tsr_st_file *f);
const struct tsr_st_entry *tsr_st_find(const struct tsr_st_file *f, const char *name);

// Reads the sub-matrix rows [r0, r1), cols [c0, c1) of a 2-D (or 1-D: cols 0..1) tensor as fp32
// into out (row-major, contiguous). Reads only the bytes that it needs.
int tsr_st_read_region(const struct tsr_st_file *f, const struct tsr_st_entry *e, int64_t r0,
                       int64_t r1, int64_t c0, int64_t c1, float *out);

// The header (length, JSON padded to 8 bytes) of a file that will hold `n` tensors in this order;
// fills begin/end. `format: pt` stands in the metadata as transformers expects.
int tsr_st_header(struct tsr_st_entry *entries, int n, struct tsr_buf *out);

size_t tsr_dtype_size(enum tsr_dtype t);
float tsr_bf16_to_f32(uint16_t h);
float tsr_f16_to_f32(uint16_t h);
uint16_t tsr_f32_to_bf16(float f); // round to nearest even, NaN kept quiet
uint16_t tsr_f32_to_f16(float f);

#endif
