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
//   open         every rank: computes the file layout, touches nothing
//   begin        one rank: makes the temporary directory with all files at their full size
//   write        any rank, any number of times: disjoint regions, in any order    (after begin)
//   fsync        every rank that wrote: what it wrote is on the disk
//   digest       every rank: its share of the ranges                  (after everyone's fsync)
//   commit       one rank: small files, manifest, rename                     (after all digests)
//   abort        one rank, instead of commit: removes the temporary directory
//
// A failure at any step leaves earlier checkpoints as they were: TSR_ENOSPC or TSR_EIO with path.
#ifndef TSR_CORE_CHECKPOINT_H
#define TSR_CORE_CHECKPOINT_H

#include "core/io.h"
#include "core/model.h"
#include "core/safetensors.h"
#include "core/tensor.h"

enum tsr_checkpoint_part { TSR_CKPT_WEIGHTS, TSR_CKPT_M, TSR_CKPT_V };

// What a run needs besides tensors to continue as if it had never stopped (state.json).
struct tsr_state {
    int64_t step;      // steps completed
    int64_t updates;   // optimizer updates applied: step less those skipped as not finite
    int64_t sequences; // data position: global index of the next training sequence
    int64_t seed;
    int64_t virtual_shards, virtual_replicas;
    int64_t n_params; // of the model; commit fills it in from the table
    char *run_yaml;   // the resolved run file; owned after tsr_state_read
};

// Reads and checks DIR/state.json; TSR_EMODEL when it is missing or wrong.
int tsr_state_read(struct tsr_state *s, const char *dir);
void tsr_state_free(struct tsr_state *s);
// The text of state.json, appended to `out`.
int tsr_state_to_json(const struct tsr_state *s, struct tsr_buf *out);

struct tsr_checkpoint; // being written

struct tsr_checkpoint_opt {
    const char *run_dir;
    const struct tsr_model *model;        // must outlive the handle
    const struct tsr_tensor_table *table; // likewise
    enum tsr_dtype dtype;                 // of the model files: F32, BF16 or F16
    int64_t step;                         // steps completed
    uint64_t nonce;          // in the temporary's name, equal on all ranks: tsr_checkpoint_nonce
    uint64_t max_file_bytes; // a file holds at least one tensor and else no more; 0: 5 GB
    uint64_t range_bytes;    // of one digest: a power of two, 0: 16 MiB
};

struct tsr_digest { // XXH3-128 in its canonical (big-endian) form
    uint8_t b[16];
};

uint64_t tsr_checkpoint_nonce(void); // a random number

int tsr_checkpoint_open(struct tsr_checkpoint **out, const struct tsr_checkpoint_opt *opt);
void tsr_checkpoint_close(struct tsr_checkpoint *c); // removes nothing; NULL is fine

int tsr_checkpoint_begin(struct tsr_checkpoint *c); // cleans up after itself when it fails

// Writes a canonical region (rows r0..r1 of `ld` floats each, the first at `data`) of the table's
// tensor `t` to its place. Moments of a frozen tensor don't exist: writing them does nothing.
int tsr_checkpoint_write(struct tsr_checkpoint *c, enum tsr_checkpoint_part part,
                         const struct tsr_tensor *t, struct tsr_region region, const float *data,
                         int64_t ld);

// Fsyncs and closes the files that this handle wrote.
int tsr_checkpoint_fsync(struct tsr_checkpoint *c);

// Coverage: the elements that this handle wrote, and the elements of all parts together. When the
// sum over ranks of the first is the second and regions are disjoint, nothing is missing.
int64_t tsr_checkpoint_elems_written(const struct tsr_checkpoint *c);
int64_t tsr_checkpoint_elems(const struct tsr_checkpoint *c);

// Range r of all tensor files is read by rank r mod n_ranks. `out` gets this rank's
// tsr_checkpoint_n_digests(c, rank, n_ranks) digests, so that the ranks' arrays one after another
// (an all-gather) are what commit takes.
int64_t tsr_checkpoint_n_digests(const struct tsr_checkpoint *c, int rank, int n_ranks);
int tsr_checkpoint_digest(struct tsr_checkpoint *c, int rank, int n_ranks, struct tsr_digest *out);

// Writes the small files and the manifest, makes everything durable and renames the directory to
// step-%08d; one of the same step is replaced in one exchange. `source_dir` (or NULL) is where
// generation_config.json comes from, `tokenizer_dir` (or NULL) the tokenizer's files. On failure
// the caller aborts.
int tsr_checkpoint_commit(struct tsr_checkpoint *c, const struct tsr_digest *digests, int n_ranks,
                          const struct tsr_state *state, const char *source_dir,
                          const char *tokenizer_dir);
int tsr_checkpoint_abort(struct tsr_checkpoint *c);

// The directory that commit renames to.
const char *tsr_checkpoint_dir(const struct tsr_checkpoint *c);

// Checks a checkpoint against its manifest: the manifest's own checksum, that every file is there
// with its size and no other, and the digests of ranges r with r mod n_ranks = rank (0 of 1: all).
// TSR_EMODEL says what is wrong with which file.
int tsr_checkpoint_verify(const char *dir, int rank, int n_ranks);

// RUN_DIR/checkpoints/step-%08d.
int tsr_checkpoint_path(char out[static TSR_PATH_MAX], const char *run_dir, int64_t step);

// The newest checkpoint of a run whose step is below `below` (INT64_MAX at first; then the step
// found, when that one doesn't verify). Returns 1 and fills step and out, 0 when there is none,
// or a negative code. Unfinished temporaries are never found.
int tsr_checkpoint_latest(const char *run_dir, int64_t below, int64_t *step,
                          char out[static TSR_PATH_MAX]);

// Removes all but the newest `keep` checkpoints (0: keeps all), and never the last two: the newer
// one may prove unreadable.
int tsr_checkpoint_retain(const char *run_dir, int64_t keep);

// Removes what an interrupted writer left, and puts back a checkpoint that was being replaced on a
// file system without atomic exchange. Only while no rank is writing.
int tsr_checkpoint_clean_temps(const char *run_dir);

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
