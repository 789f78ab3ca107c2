// What the files of the checkpoint writer and reader share; not for other modules.
#ifndef TSR_CORE_CHECKPOINT_PRIVATE_H
#define TSR_CORE_CHECKPOINT_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/checkpoint.h"
#include "core/place.h"

// ---- the file layout (checkpoint_layout.c)

// A tensor file: consecutive entries of one set, cut where max_file_bytes would be exceeded.
struct tsr_ckpt_file {
    char path[64]; // below the checkpoint's directory
    struct tsr_st_entry *entries;
    int n_entries;
    struct tsr_buf header;
    uint64_t size; // bytes, header included
    int64_t first_range, n_ranges;
    bool dirty; // written through this handle and not yet synced
};

// The files of one kind: model, master, m or v. An entry of the model set may be several fused
// canonical tensors.
struct tsr_ckpt_set {
    enum tsr_checkpoint_part part;
    bool hf; // as in HF model files, else canonical
    enum tsr_dtype dtype;
    const char *stem; // "optimizer/m"
    struct tsr_st_entry *entries;
    int n_entries;
    int *entry_of; // of each tensor of the table; -1: not in this set
    int first_file, n_files;
    int fd, fd_file; // the file written to last, or -1
};

enum { TSR_CKPT_MAX_SETS = 4 };

struct tsr_checkpoint {
    struct tsr_checkpoint_opt opt; // with defaults filled in; strings not kept
    char parent[TSR_PATH_MAX];     // RUN_DIR/checkpoints
    char tmp[TSR_PATH_MAX], dir[TSR_PATH_MAX];
    struct tsr_ckpt_set sets[TSR_CKPT_MAX_SETS];
    int n_sets;
    struct tsr_ckpt_file *files; // of all sets, in order
    int n_files;
    int64_t n_ranges;
    int64_t elems_written;
    float *block;     // (TSR_CKPT_BLOCK) rows on their way to a file
    uint16_t *narrow; // the same in the file's dtype, when that isn't F32
};

enum { TSR_CKPT_BLOCK = 1 << 20 }; // floats

// Fills sets, files and ranges.
int tsr_ckpt_layout(struct tsr_checkpoint *c);
void tsr_ckpt_layout_free(struct tsr_checkpoint *c);

// ---- directories (checkpoint_dir.c)

struct tsr_ckpt_names {
    char **v; // sorted
    int n;
};
// Every file of a checkpoint's directory as "name" or "optimizer/name". TSR_EMODEL for anything
// that is neither a regular file nor the folder optimizer/.
int tsr_ckpt_list(struct tsr_ckpt_names *out, const char *dir);
void tsr_ckpt_names_free(struct tsr_ckpt_names *names);

// ---- digests (checkpoint_digest.c)

// XXH3-128 of [at, at + n_bytes) of an open file.
int tsr_ckpt_digest_range(int fd, const char *path, uint64_t at, uint64_t n_bytes,
                          struct tsr_digest *out);
// XXH3-128 of memory.
struct tsr_digest tsr_ckpt_digest_bytes(const void *p, size_t n_bytes);

enum { TSR_CKPT_HEX = 32 };
void tsr_ckpt_hex(char out[static TSR_CKPT_HEX + 1], const struct tsr_digest *d);
// False unless `hex` is 32 lower-case digits.
bool tsr_ckpt_unhex(struct tsr_digest *out, const char *hex);

static inline int64_t tsr_ckpt_n_ranges(uint64_t size, uint64_t range_bytes) {
    return (int64_t)(size / range_bytes + (size % range_bytes != 0));
}

// Where range r stands when the ranks' digests lie one rank after another: rank k has those with
// r mod n_ranks = k.
static inline int64_t tsr_ckpt_n_of_rank(int64_t n_ranges, int rank, int n_ranks) {
    return (n_ranges - rank + n_ranks - 1) / n_ranks;
}
static inline int64_t tsr_ckpt_slot_of_range(int64_t r, int64_t n_ranges, int n_ranks) {
    int64_t rank = r % n_ranks, longer = n_ranges % n_ranks; // ranks with one range more
    return rank * (n_ranges / n_ranks) + (rank < longer ? rank : longer) + r / n_ranks;
}

// ---- the manifest (checkpoint_manifest.c)

struct tsr_ckpt_listed {
    char *path;
    uint64_t size;
    struct tsr_digest *digests; // one per range
    int64_t n_ranges;
};

struct tsr_ckpt_manifest {
    int64_t step;
    uint64_t range_bytes;
    struct tsr_ckpt_listed *files; // sorted by path
    int n;
};

#define TSR_CKPT_MANIFEST "manifest.json"

// The manifest's text, which ends with a checksum of all that stands before it.
int tsr_ckpt_manifest_text(const struct tsr_ckpt_manifest *m, struct tsr_buf *out);
// Reads DIR/manifest.json, checks its checksum and every number in it.
int tsr_ckpt_manifest_read(struct tsr_ckpt_manifest *m, const char *dir);
void tsr_ckpt_manifest_free(struct tsr_ckpt_manifest *m);

#endif
