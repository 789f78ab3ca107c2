// Looking at checkpoints: which there are, and everything that is wrong with one.
#ifndef TSR_CORE_CHECKPOINT_AUDIT_H
#define TSR_CORE_CHECKPOINT_AUDIT_H

#include "core/checkpoint.h"

// Where tsr_checkpoint_verify stops at the first fault, an audit goes on and tells all of them.
struct tsr_audit {
    void *arg;
    // Bytes [first, end) of a file, or the file as a whole when both are 0. `file` is below the
    // checkpoint's directory ("" : the directory); `text` says what was expected and found.
    void (*problem)(void *arg, const char *file, uint64_t first, uint64_t end, const char *text);
    void (*progress)(void *arg, uint64_t n_bytes, uint64_t total); // read so far; or NULL
    // What was seen:
    int64_t step; // of the manifest; -1: unreadable
    uint64_t n_bytes;
    int n_files;
    int64_t n_ranges, n_problems;
};

// 0 whatever is found; TSR_ENOMEM, or TSR_EMODEL when there is no such directory.
int tsr_checkpoint_audit(const char *dir, struct tsr_audit *a);

// One entry of RUN_DIR/checkpoints.
struct tsr_checkpoint_item {
    const char *name;
    const char *path;
    int64_t step;    // of its name; -1: none
    bool unfinished; // a temporary, which no run would load
    uint64_t n_bytes;
    int n_files;
};
// Calls back with the checkpoints by step, then with the temporaries. Other things are passed over.
// TSR_EMODEL when run_dir has no folder of checkpoints.
int tsr_checkpoint_each(const char *run_dir, int (*fn)(void *, const struct tsr_checkpoint_item *),
                        void *arg);

// The digests of a checkpoint's manifest, to compare two checkpoints without reading them.
struct tsr_checkpoint_digests;
int tsr_checkpoint_digests_open(struct tsr_checkpoint_digests **out, const char *dir);
void tsr_checkpoint_digests_close(struct tsr_checkpoint_digests *d); // NULL is fine
// True when both have the file and every range that [first, end) touches has the same digest.
bool tsr_checkpoint_digests_equal(const struct tsr_checkpoint_digests *a,
                                  const struct tsr_checkpoint_digests *b, const char *file,
                                  uint64_t first, uint64_t end);
uint64_t tsr_checkpoint_digests_range_bytes(const struct tsr_checkpoint_digests *d);
// That of one range of a file; NULL when the manifest has no such file or range.
const struct tsr_digest *tsr_checkpoint_digests_of(const struct tsr_checkpoint_digests *d,
                                                   const char *file, int64_t range);
// Bytes of tensor data that rank r of n reads when it verifies its share.
uint64_t tsr_checkpoint_digests_share(const struct tsr_checkpoint_digests *d, int rank,
                                      int n_ranks);

// The optimizer file that holds a part of the table's tensor `t`, and its entry there; NULL for the
// moments of a frozen tensor. TSR_CKPT_WEIGHTS asks for the master, which must be there.
const struct tsr_st_file *tsr_moments_file(const struct tsr_moments *m,
                                           enum tsr_checkpoint_part part,
                                           const struct tsr_tensor *t,
                                           const struct tsr_st_entry **entry);

// All files of one part (none: no such part), the same ones in the same order on every rank. They
// may be given a source to be read from.
struct tsr_st_file *tsr_moments_files(struct tsr_moments *m, enum tsr_checkpoint_part part, int *n);

#endif
