// Training data: token sequences out of weighted sources. Sequence g is a pure function of
// (seed, g), so resuming and any data-parallel layout seek in O(1).
//
// N tokens and length T give n = floor((N-1)/T) sequences; sequence i is tokens [iT, iT+T].
// Unshuffled, global sequence g is g mod n; shuffled, it is a stateless permutation of each epoch.
#ifndef TSR_CORE_DATASET_H
#define TSR_CORE_DATASET_H

#include <stdbool.h>
#include <stdint.h>
#include "core/run.h"
#include "core/tokenizer.h"

struct tsr_dataset;

struct tsr_dataset_opt {
    const struct tsr_sources *sources;
    const char *cache_dir;           // tokenized text is kept here as .bin/.idx
    struct tsr_tokenizer *tokenizer; // NULL: only .bin/.idx sources
    const char *tokenizer_dir;       // its folder: tokenizer.json is part of the cache's name
    int64_t vocab;                   // of the model: each id is checked to be below it
    int64_t seq_len;                 // T
    bool shuffle;
    uint64_t seed;
    enum {
        TSR_PART_ALL,
        TSR_PART_TRAIN,
        TSR_PART_HELD_OUT
    } part;        // of text sources: every 20th 8 KiB block is held out
    bool isolated; // packing: report document starts
};

// Tokenizes text and JSONL sources into the cache when they aren't there yet, with a progress
// line. Called by one process; the others wait and then open.
int tsr_dataset_prepare(const struct tsr_dataset_opt *opt);

// Opens (maps) the sources. Less than one sequence in all: TSR_EDATA with the counts. A part that
// holds nothing because no source is text: *out is NULL and 0 is returned.
int tsr_dataset_open(struct tsr_dataset **out, const struct tsr_dataset_opt *opt);
void tsr_dataset_close(struct tsr_dataset *d);

int64_t tsr_dataset_n_sequences(const struct tsr_dataset *d); // in one epoch
int64_t tsr_dataset_n_tokens(const struct tsr_dataset *d);

// Fills tokens[0..T] (T + 1 of them) of global sequence g. When `doc_start` isn't NULL (T + 1
// bytes) it is set to 1 where a token begins a document, else 0.
int tsr_dataset_sequence(const struct tsr_dataset *d, uint64_t g, int32_t *tokens,
                         uint8_t *doc_start);

// Tokens [at, at + n) as they stand in the only source, without regard to sequences (`eval`
// needs the last, shorter window). For datasets of one source.
int tsr_dataset_read(const struct tsr_dataset *d, int64_t at, int64_t n, int32_t *tokens,
                     uint8_t *doc_start);

// Megatron-LM .bin/.idx ("MMIDIDX\0\0", version 1).
struct tsr_indexed; // a mapped file pair
int tsr_indexed_open(struct tsr_indexed **out, const char *prefix);
void tsr_indexed_close(struct tsr_indexed *x);
int64_t tsr_indexed_n_tokens(const struct tsr_indexed *x);
int64_t tsr_indexed_n_sequences(const struct tsr_indexed *x);
int64_t tsr_indexed_n_documents(const struct tsr_indexed *x);
// Copies tokens [at, at + n) of the concatenation; start[i] = 1 where a document begins.
int tsr_indexed_read(const struct tsr_indexed *x, int64_t at, int64_t n, int32_t *tokens,
                     uint8_t *start);

struct tsr_indexed_writer;
int tsr_indexed_create(struct tsr_indexed_writer **out, const char *prefix, int64_t vocab);
int tsr_indexed_add_document(struct tsr_indexed_writer *w, const int32_t *tokens, int64_t n);
// Writes the index, fsyncs and renames both files into place; on failure removes them.
int tsr_indexed_finish(struct tsr_indexed_writer *w);
void tsr_indexed_abort(struct tsr_indexed_writer *w);

// The stateless permutation: a bijection of [0, n) chosen by (seed, epoch).
uint64_t tsr_permute(uint64_t i, uint64_t n, uint64_t seed, uint64_t epoch);

#endif
