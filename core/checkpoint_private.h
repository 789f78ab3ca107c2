// What the files of the checkpoint writer and reader share; not for other modules.
#ifndef TSR_CORE_CHECKPOINT_PRIVATE_H
#define TSR_CORE_CHECKPOINT_PRIVATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>
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
    bool dirty;    // written through this handle and not yet synced
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
};

enum { TSR_CKPT_MAX_SETS = 4 };

struct tsr_ckpt_io;

// An open file of the temporary directory.
struct tsr_ckpt_sink {
    int fd;              // or -1: not open
    int direct;          // the same file with O_DIRECT, or -1
    atomic_bool refused; // a direct write was: it turned out not to be supported
    char path[TSR_PATH_MAX];
};

// Bytes of one set on their way to its files: consecutive ones gather in a buffer.
struct tsr_ckpt_run {
    int file; // that is open, or -1
    struct tsr_ckpt_sink sink;
    char *buf;     // of io, or NULL; buf[0] stands for offset `base`, a multiple of the page
    uint64_t base; // bytes
    size_t lo, hi; // filled: buf[lo, hi)
    // the range that is being written in order, from its first byte on
    XXH3_state_t *hash;
    bool hashing;
    int hash_file;
    uint64_t hash_at; // offset of the byte that must come next
};

struct tsr_ckpt_done { // a range that this handle wrote whole
    int file;
    int64_t range; // of the file
    struct tsr_digest digest;
};

struct tsr_checkpoint {
    struct tsr_checkpoint_opt opt; // with defaults filled in; strings not kept
    char parent[TSR_PATH_MAX];     // RUN_DIR/checkpoints
    char tmp[TSR_PATH_MAX], dir[TSR_PATH_MAX];
    struct tsr_ckpt_set sets[TSR_CKPT_MAX_SETS];
    struct tsr_ckpt_run runs[TSR_CKPT_MAX_SETS]; // of the sets
    int n_sets;
    struct tsr_ckpt_file *files; // of all sets, in order
    int n_files;
    bool began;             // through this handle
    struct tsr_ckpt_io *io; // from the first write on
    int64_t elems_written;
    struct tsr_ckpt_done *done;
    size_t n_done, cap_done;
    float *block;     // (TSR_CKPT_BLOCK) rows on their way to a file
    uint16_t *narrow; // the same in the file's dtype, when that isn't F32
};

enum { TSR_CKPT_BLOCK = 1 << 20 }; // floats

// Fills sets and files.
int tsr_ckpt_layout(struct tsr_checkpoint *c);
void tsr_ckpt_layout_free(struct tsr_checkpoint *c);

// ".tmp-step-%08d-e%08d-a%d"
enum { TSR_CKPT_NAME = 128 };
void tsr_ckpt_temporary(char out[static TSR_CKPT_NAME], int64_t step, uint64_t epoch,
                        uint32_t attempt);

// ---- files that hold no tensors (checkpoint_small.c)

// Writes them to the temporary directory.
int tsr_ckpt_put_small(const struct tsr_checkpoint *c, const struct tsr_state *state,
                       const char *source_dir, const char *tokenizer_dir);

// ---- bytes to files in the background (checkpoint_io.c)

enum {
    TSR_CKPT_PAGE = 4096,
    TSR_CKPT_BUFFER = 2 << 20,
    TSR_CKPT_N_BUFFERS = TSR_CKPT_MAX_SETS + 4, // each set may hold one; the others go round
};

// Buffers, and threads that write them, begun in order.
int tsr_ckpt_io_open(struct tsr_ckpt_io **out);
void tsr_ckpt_io_close(struct tsr_ckpt_io *io); // drops what isn't written; NULL is fine
// A free buffer of TSR_CKPT_BUFFER bytes on a page's border. The threads' first failure is told
// here or by drain.
int tsr_ckpt_io_take(struct tsr_ckpt_io *io, char **buf);
// buf[lo, hi) goes to offset base + lo on; the buffer becomes free again.
void tsr_ckpt_io_submit(struct tsr_ckpt_io *io, struct tsr_ckpt_sink *sink, char *buf,
                        uint64_t base, size_t lo, size_t hi);
// Waits until everything is written.
int tsr_ckpt_io_drain(struct tsr_ckpt_io *io);

// Opens a file for both ways of writing; TSR_CKPT_BUFFERED or a file system without O_DIRECT: one.
int tsr_ckpt_sink_open(struct tsr_ckpt_sink *sink, const char *dir, const char *name,
                       bool buffered);
int tsr_ckpt_sink_close(struct tsr_ckpt_sink *sink); // none open is fine

// ---- shares (checkpoint_share.c)

struct tsr_ckpt_window { // of a file: bytes [from, to)
    uint64_t from, to;
};
// How much of each range the sources have.
struct tsr_ckpt_shares {
    int64_t *first; // (n_files): each file's first range
    int64_t n_ranges;
    double *bytes; // (n_ranges)
    double total;
};
// The caller closes, also after a failure.
int tsr_ckpt_shares_open(struct tsr_ckpt_shares *s, const struct tsr_checkpoint *c,
                         const struct tsr_checkpoint_source *sources, int n);
void tsr_ckpt_shares_close(struct tsr_ckpt_shares *s);
// The windows of a share, one for each file of the handle.
void tsr_ckpt_share(const struct tsr_ckpt_shares *s, const struct tsr_checkpoint *c, int share,
                    int n_shares, struct tsr_ckpt_window *w);

// ---- runs of bytes (checkpoint_stream.c)

void tsr_ckpt_runs_init(struct tsr_checkpoint *c);
// n bytes at `offset` of file k of set i.
int tsr_ckpt_put(struct tsr_checkpoint *c, int set, int k, uint64_t offset, const void *data,
                 size_t n);
// Everything put is written and the files are closed.
int tsr_ckpt_runs_finish(struct tsr_checkpoint *c);
void tsr_ckpt_runs_free(struct tsr_checkpoint *c); // drops what isn't written

// ---- directories (checkpoint_dir.c)

struct tsr_ckpt_names {
    char **v; // sorted
    int n;
};
// Every file of a checkpoint's directory as "name" or "optimizer/name". TSR_EMODEL for anything
// that is neither a regular file nor the folder optimizer/.
int tsr_ckpt_list(struct tsr_ckpt_names *out, const char *dir);
void tsr_ckpt_names_free(struct tsr_ckpt_names *names);
// Names in RUN_DIR/checkpoints, whose path goes to `parent`.
int tsr_ckpt_list_parent(struct tsr_ckpt_names *out, char parent[static TSR_PATH_MAX],
                         const char *run_dir);
// The number in the digits that follow `prefix`, as begin writes them; *rest is what follows.
bool tsr_ckpt_parse_step(const char *name, const char *prefix, int64_t *step, const char **rest);

// ---- digests (checkpoint_digest.c)

// XXH3-128 of [at, at + n_bytes) of an open file.
int tsr_ckpt_digest_range(int fd, const char *path, uint64_t at, uint64_t n_bytes,
                          struct tsr_digest *out);
struct tsr_digest tsr_ckpt_digest_of(const XXH3_state_t *state);
// XXH3-128 of memory.
struct tsr_digest tsr_ckpt_digest_bytes(const void *p, size_t n_bytes);

enum { TSR_CKPT_HEX = 32 };
void tsr_ckpt_hex(char out[static TSR_CKPT_HEX + 1], const struct tsr_digest *d);
// False unless `hex` is 32 lower-case digits.
bool tsr_ckpt_unhex(struct tsr_digest *out, const char *hex);

static inline int64_t tsr_ckpt_n_ranges(uint64_t size, uint64_t range_bytes) {
    return (int64_t)(size / range_bytes + (size % range_bytes != 0));
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
// "name" or "optimizer/name"; nothing outside of the directory is ever opened.
bool tsr_ckpt_is_plain_path(const char *path);
// XXH3-128 of the manifest's bytes: what tells two checkpoints of a step apart.
int tsr_ckpt_manifest_digest(const char *dir, struct tsr_digest *out);

// TSR_EMODEL when the directory's name says another step than its manifest (checkpoint_verify.c).
int tsr_ckpt_check_step(const char *dir, int64_t step);

#endif
