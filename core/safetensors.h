// The safetensors format: u64 header length, JSON header, raw little-endian data.
#ifndef TSR_CORE_SAFETENSORS_H
#define TSR_CORE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/io.h"

// name in the header, bytes per element. F32, F16 and BF16 can be read as weights; the others are
// known so that files with buffers of other types (masks, indices) can be checked and opened.
#define TSR_DTYPE_MAP(X)                                                                           \
    X(F32, 4)                                                                                      \
    X(F16, 2)                                                                                      \
    X(BF16, 2)                                                                                     \
    X(F64, 8)                                                                                      \
    X(I64, 8)                                                                                      \
    X(U64, 8)                                                                                      \
    X(C64, 8)                                                                                      \
    X(I32, 4)                                                                                      \
    X(U32, 4)                                                                                      \
    X(I16, 2)                                                                                      \
    X(U16, 2)                                                                                      \
    X(I8, 1)                                                                                       \
    X(U8, 1)                                                                                       \
    X(BOOL, 1)                                                                                     \
    X(F8_E5M2, 1)                                                                                  \
    X(F8_E4M3, 1)                                                                                  \
    X(F8_E8M0, 1)

enum tsr_dtype {
#define X(name, size) TSR_DT_##name,
    TSR_DTYPE_MAP(X)
#undef X
        TSR_N_DTYPES
};

enum { TSR_ST_MAX_DIMS = 8 };

struct tsr_st_entry {
    char *name;
    enum tsr_dtype dtype;
    int ndim; // 0: a scalar
    int64_t shape[TSR_ST_MAX_DIMS];
    uint64_t begin, end; // bytes, from the start of the data section
};

struct tsr_st_file;

// Where the bytes of files come from when not out of the files themselves: memory that was read
// ahead.
struct tsr_st_source {
    int (*read)(void *arg, const struct tsr_st_file *f, void *buf, size_t n_bytes, uint64_t offset);
    void *arg;
};

struct tsr_st_file {
    char *path;
    int fd;
    const struct tsr_st_source *source; // NULL: the file
    uint64_t data_offset;               // of the data section in the file
    uint64_t data_size;
    struct tsr_st_entry *entries; // sorted by name
    int n;
};

// Opens and checks everything before anything is allocated by a number out of the file: header
// length against the file's size, names unique, shapes times dtype equal to the byte range, no
// overlap, no hole, no byte past the end. TSR_EMODEL names file, tensor and both numbers. On
// failure there is nothing to close.
int tsr_st_open(struct tsr_st_file *f, const char *path);
void tsr_st_close(struct tsr_st_file *f);
const struct tsr_st_entry *tsr_st_find(const struct tsr_st_file *f, const char *name);

// Reads the sub-matrix rows [r0, r1), cols [c0, c1) of a 2-D (or 1-D: cols 0..1) tensor as fp32
// into out (row-major, contiguous). Reads only the bytes that it needs, and short gaps between
// rows where that saves a call per row. A dtype that isn't F32, F16 or BF16, and a scalar or more
// than two dimensions: TSR_EMODEL.
int tsr_st_read_region(const struct tsr_st_file *f, const struct tsr_st_entry *e, int64_t r0,
                       int64_t r1, int64_t c0, int64_t c1, float *out);

// Bytes that tsr_st_read_region reads for it, short gaps included.
uint64_t tsr_st_region_bytes(const struct tsr_st_entry *e, int64_t r0, int64_t r1, int64_t c0,
                             int64_t c1);

// The header (length, JSON padded to 8 bytes) of a file that will hold `n` tensors in this order;
// fills begin/end. `format: pt` stands in the metadata as transformers expects.
int tsr_st_header(struct tsr_st_entry *entries, int n, struct tsr_buf *out);

size_t tsr_dtype_size(enum tsr_dtype t);
const char *tsr_dtype_name(enum tsr_dtype t);
float tsr_bf16_to_f32(uint16_t h);
float tsr_f16_to_f32(uint16_t h);
uint16_t tsr_f32_to_bf16(float f); // round to nearest even, NaN kept quiet
uint16_t tsr_f32_to_f16(float f);

// n elements of F32, F16 or BF16 from or to memory of that type; src and dst don't overlap.
void tsr_dtype_to_f32(enum tsr_dtype t, float *dst, const void *src, size_t n);
void tsr_dtype_from_f32(enum tsr_dtype t, void *dst, const float *src, size_t n);

#endif
