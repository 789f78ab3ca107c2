// Large files on their way into a net: the ranks of one host read them together, each byte once and
// past the page cache, into memory that all of them see, in the files' order, ahead of those who
// copy from it. A checkpoint's ranges are digested on the way.
//
// The files are cut into pieces of at most 4 MiB, and read in rounds: in each, every rank of the
// host reads the next one. The ranks meet once a round.
#ifndef TSR_DIST_READ_AHEAD_H
#define TSR_DIST_READ_AHEAD_H

#include "core/checkpoint_audit.h"
#include "core/safetensors.h"
#include "dist/comm.h"

struct tsr_read_ahead;

struct tsr_ahead_file {
    struct tsr_st_file *f; // its source is set until close
    bool optimizer;        // stands in optimizer/
};

// Bytes that this rank needs.
struct tsr_ahead_need {
    int file;
    uint64_t offset, n_bytes;
};

struct tsr_ahead_opt {
    struct tsr_ctx *ctx;
    struct tsr_comm *comm;
    const char *verify;           // the checkpoint's directory, or NULL: nothing is verified
    struct tsr_ahead_file *files; // the same ones on all ranks, in the same order
    int n_files;
    const struct tsr_ahead_need *needs; // any
    int n_needs;
};

// Whether files of so many bytes are worth it.
bool tsr_read_ahead_pays(uint64_t n_bytes);

// From here on the files are read from what is read ahead: best in the order of files and offsets,
// because what has gone by comes from the file again. `files` must outlive it. Collective: all
// ranks get an error or none does.
int tsr_read_ahead_open(struct tsr_read_ahead **out, const struct tsr_ahead_opt *opt);

// Copies bytes of a file to the device from where they were read to. 1, or 0 with nothing done: the
// first of them has gone by.
int tsr_read_ahead_copy(struct tsr_read_ahead *a, const struct tsr_ahead_need *what, void *device);

// Waits until everything is read and, of a checkpoint, every range of tensor files is verified by
// some rank: TSR_EMODEL says which one is damaged. Frees it. Collective; the ranks' codes may
// differ, and what was copied is good only when all of them are 0.
int tsr_read_ahead_close(struct tsr_read_ahead *a);

#endif
