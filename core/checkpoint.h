// Checkpoints: RUN_DIR/checkpoints/step-%08d, each one a Hugging Face model directory
// (docs/checkpoint.md).
//
//   config.json, generation_config.json, tokenizer files
//   model-0000i-of-0000n.safetensors, model.safetensors.index.json    HF names and orientation
//   optimizer/{m,v}-0000i-of-0000n.safetensors                        fp32, canonical tensors
//   optimizer/master-…                             fp32 weights, when the model files aren't fp32
//   state.json                                     step, data position, seed, V, W, run file
//   manifest.json                                  files, sizes, XXH3-128 of each range; last
//
// Nothing in it depends on the layout that wrote it: files are cut by size, tensors are whole.
//
// Writing takes steps, each called on whichever rank the caller likes; a handle with the same
// options is opened on every rank, and no step talks to another rank:
//
//   open      every rank: computes the file layout, touches nothing
//   begin     one rank: the temporary directory, all files at their full size, small files whole
//   plan      that rank: the files and their sizes
//   write     any rank, any number of times: disjoint regions            (after begin)
//   flush     every rank that wrote, and the one that began: all of it is on the disk
//   digest    any rank: digests of ranges that no flush could give       (after everyone's flush)
//   abort     one rank, when the save has failed: removes the temporary directory
//
// What makes a checkpoint of it (manifest, rename) is core/checkpoint_publish.h. A failure at any
// step leaves earlier checkpoints as they were: TSR_ENOSPC or TSR_EIO with path.
//
// Ranges are what has one digest: `range_bytes` bytes (the last of a file: what is left), numbered
// through the files in the order of their paths, the manifest not among them.
#ifndef TSR_CORE_CHECKPOINT_H
#define TSR_CORE_CHECKPOINT_H

#include "core/guard.h"
#include "core/io.h"
#include "core/model.h"
#include "core/safetensors.h"
#include "core/tensor.h"

enum tsr_checkpoint_part { TSR_CKPT_WEIGHTS, TSR_CKPT_M, TSR_CKPT_V };

// What a run needs besides tensors to continue as if it had never stopped (state.json).
struct tsr_state {
    int64_t step;      // steps completed
    int64_t updates;   // optimizer updates applied: step less those skipped as bad
    int64_t sequences; // data position: global index of the next training sequence; more than the
                       // steps took by those that rollbacks dropped
    int64_t seed;
    int64_t virtual_shards, virtual_replicas;
    int64_t n_params; // of the model; begin fills it in from the table
    char *run_yaml;   // the resolved run file; owned after tsr_state_read
    struct tsr_guard guard;
};

// Reads and checks DIR/state.json; TSR_EMODEL when it is missing or wrong.
int tsr_state_read(struct tsr_state *s, const char *dir);
void tsr_state_free(struct tsr_state *s);
// The text of state.json, appended to `out`.
int tsr_state_to_json(const struct tsr_state *s, struct tsr_buf *out);

struct tsr_digest { // XXH3-128 in its canonical (big-endian) form
    uint8_t b[16];
};

struct tsr_planned_file {
    char *path; // below the checkpoint's directory
    uint64_t size;
};

// What a save will consist of; core/checkpoint_publish.h makes the manifest of it.
struct tsr_save_plan {
    char temporary[128]; // base name
    uint64_t range_bytes;
    uint64_t elements;              // of all parts of all tensors: what the votes must add up to
    struct tsr_planned_file *files; // sorted by path, the manifest not among them
    int n_files;
};
void tsr_save_plan_free(struct tsr_save_plan *p);

struct tsr_range_digests { // of consecutive ranges
    uint64_t first;
    struct tsr_digest *digests;
    int n;
};

// What one rank wrote.
struct tsr_save_vote {
    uint64_t elements;
    struct tsr_range_digests *ranges; // ascending, disjoint
    int n_ranges;
};
void tsr_save_vote_free(struct tsr_save_vote *v);

struct tsr_span { // of ranges
    uint64_t first, count;
};

struct tsr_checkpoint; // being written

struct tsr_checkpoint_opt {
    const char *run_dir;
    const struct tsr_model *model;        // must outlive the handle
    const struct tsr_tensor_table *table; // likewise
    enum tsr_dtype dtype;                 // of the model files: F32, BF16 or F16
    int64_t step;                         // steps completed
    uint64_t epoch;                       // of the run's incarnation
    uint32_t attempt;                     // saves begun by this incarnation
    uint64_t max_file_bytes; // a file holds at least one tensor and else no more; 0: 5 GB
    uint64_t range_bytes;    // of one digest: a power of two, 0: 16 MiB
    bool buffered;           // no O_DIRECT, even where the file system has it
};

// A handle is used by one thread at a time; different handles don't know of each other.
int tsr_checkpoint_open(struct tsr_checkpoint **out, const struct tsr_checkpoint_opt *opt);
void tsr_checkpoint_close(struct tsr_checkpoint *c); // removes nothing; NULL is fine

// The temporary directory .tmp-step-%08d-e%08d-a%d with every file at its full size; the small ones
// (config.json, generation_config.json from `source_dir` or NULL, the tokenizer's from
// `tokenizer_dir` or NULL, the index, state.json) are complete. Cleans up after itself when it
// fails.
int tsr_checkpoint_begin(struct tsr_checkpoint *c, const struct tsr_state *state,
                         const char *source_dir, const char *tokenizer_dir);
// After begin, of any rank. The caller frees it.
int tsr_checkpoint_plan(const struct tsr_checkpoint *c, struct tsr_save_plan *plan);

// Writes a canonical region (rows r0..r1 of `ld` floats each, the first at `data`) of the table's
// tensor `t` to its place. Moments of a frozen tensor don't exist: writing them does nothing.
// `data` may be reused when the call returns; a failure to write may be told by a later call.
int tsr_checkpoint_write(struct tsr_checkpoint *c, enum tsr_checkpoint_part part,
                         const struct tsr_tensor *t, struct tsr_region region, const float *data,
                         int64_t ld);

// A region as it lies in memory, of the part and tensor that it belongs to; as for write.
struct tsr_checkpoint_source {
    enum tsr_checkpoint_part part;
    const struct tsr_tensor *t;
    struct tsr_region region;
    const float *data;
    int64_t ld;
};

// For processes that can read each other's memory: all of them give the same sources in the same
// order, which are cut into n_shares nearly equal shares of consecutive ranges. This process writes
// those that `next` gives it, in ascending order, until that is n_shares or more; each must be
// given to one process. A negative code of it ends the writing and is returned. In the order of the
// files.
typedef int (*tsr_share_fn)(void *arg);
int tsr_checkpoint_write_shares(struct tsr_checkpoint *c,
                                const struct tsr_checkpoint_source *sources, int n, int n_shares,
                                tsr_share_fn next, void *arg);

// All that this handle wrote is on the disk when it returns: contents, and for the handle that
// began, names. The vote has the digests, made from memory while writing, of ranges that this
// handle wrote alone and in order. The caller frees it.
int tsr_checkpoint_flush(struct tsr_checkpoint *c, struct tsr_save_vote *vote);

// Reads these ranges back. vote->elements stays 0. The caller frees it.
int tsr_checkpoint_digest(struct tsr_checkpoint *c, const struct tsr_span *spans, int n,
                          struct tsr_save_vote *vote);

int tsr_checkpoint_abort(struct tsr_checkpoint *c);

// The directory that the checkpoint will be renamed to.
const char *tsr_checkpoint_dir(const struct tsr_checkpoint *c);

// Checks a checkpoint against its manifest: the manifest's own checksum, that every file is there
// with its size and no other, and the digests of ranges r with r mod n_ranks = rank (0 of 1: all).
// TSR_EMODEL says what is wrong with which file.
int tsr_checkpoint_verify(const char *dir, int rank, int n_ranks);
// Whether a file of a checkpoint holds tensors, by its name.
bool tsr_checkpoint_is_tensors(const char *file);
// The same for the ranges that `wanted` says: number `range` of a file, number `r` of all.
typedef bool (*tsr_range_fn)(void *arg, const char *file, int64_t range, int64_t r);
int tsr_checkpoint_verify_some(const char *dir, tsr_range_fn wanted, void *arg);
// The same without reading tensors: the manifest's checksum, files and sizes.
int tsr_checkpoint_verify_quick(const char *dir);

// RUN_DIR/checkpoints/step-%08d.
int tsr_checkpoint_path(char out[static TSR_PATH_MAX], const char *run_dir, int64_t step);

// The newest checkpoint of a run whose step is below `below` (INT64_MAX at first; then the step
// found, when that one doesn't verify). Returns 1 and fills step and out, 0 when there is none,
// or a negative code. Unfinished temporaries are never found.
int tsr_checkpoint_latest(const char *run_dir, int64_t below, int64_t *step,
                          char out[static TSR_PATH_MAX]);

// The optimizer's moments of a checkpoint, and the fp32 master weights when model files aren't
// fp32. The table must outlive it. Missing, extra or misshapen: TSR_EMODEL.
struct tsr_moments;
int tsr_moments_open(struct tsr_moments **out, const char *dir, const struct tsr_tensor_table *tt);
void tsr_moments_close(struct tsr_moments *m); // NULL is fine
// When false, the model files themselves are the fp32 master: read them by tsr_weights_read.
bool tsr_moments_has_master(const struct tsr_moments *m);
// Like tsr_weights_read; TSR_CKPT_WEIGHTS reads the master. Moments of a frozen tensor are zero.
int tsr_moments_read(const struct tsr_moments *m, enum tsr_checkpoint_part part,
                     const struct tsr_tensor *t, struct tsr_region region, float *out);

#endif
