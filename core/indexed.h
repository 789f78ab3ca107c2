// Parts of the .bin/.idx reader and writer that only the dataset code needs (dataset.h has the
// rest), and the format's constants.
//
// PREFIX.idx, little-endian and unaligned (Megatron-LM, megatron/core/datasets/indexed_dataset.py):
//   9 bytes "MMIDIDX\0\0" | u64 version 1 | u8 dtype | u64 n sequences | u64 d document borders |
//   i32 lengths[n] | i64 pointers[n] (bytes into PREFIX.bin) | i64 borders[d] | optional i8
//   modes[n]
// borders[j] is the first sequence of document j; the first is 0, the last is n: d - 1 documents.
#ifndef TSR_CORE_INDEXED_H
#define TSR_CORE_INDEXED_H

#include "core/dataset.h"

enum { TSR_IDX_HEADER = 34 };
#define TSR_IDX_MAGIC "MMIDIDX\0" // with the literal's own NUL: 9 bytes

enum tsr_idx_dtype {
    TSR_IDX_U8 = 1,
    TSR_IDX_I8 = 2,
    TSR_IDX_I16 = 3,
    TSR_IDX_I32 = 4,
    TSR_IDX_I64 = 5,
    TSR_IDX_F64 = 6,
    TSR_IDX_F32 = 7,
    TSR_IDX_U16 = 8,
};

// Appends to the document that is being written; tsr_indexed_end_document closes it. For texts
// whose tokens don't fit in memory. An id outside [0, vocab): TSR_EDATA.
int tsr_indexed_add_tokens(struct tsr_indexed_writer *w, const int32_t *tokens, int64_t n);
int tsr_indexed_end_document(struct tsr_indexed_writer *w);

// Checks that every id is in [0, vocab), with a progress line. A wrong one: TSR_EDATA with its
// position, the id and the vocabulary.
int tsr_indexed_scan(const struct tsr_indexed *x, int64_t vocab);

const char *tsr_idx_dtype_name(int code); // "uint16"; NULL when there is no such code
size_t tsr_idx_dtype_size(int code);
int tsr_indexed_dtype(const struct tsr_indexed *x); // enum tsr_idx_dtype

#endif
