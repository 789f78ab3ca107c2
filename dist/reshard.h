// What each rank of a layout reads when it starts from a checkpoint, whatever layout wrote it, and
// when it is alone on its host: ranks of one host read large files together (dist/read_ahead.h).
// The same net as a run's is opened, on a device that only reserves address space, and asked for
// what dist/store.h would read into it.
#ifndef TSR_DIST_RESHARD_H
#define TSR_DIST_RESHARD_H

#include "core/checkpoint_audit.h"
#include "dist/net.h"

struct tsr_reshard_file { // of one rank
    char path[64];        // below the checkpoint's directory
    uint64_t needed;      // bytes of the tensors' regions that the rank holds or owns
    uint64_t read;        // bytes that are read for it: with the short gaps that are cheaper to
                          // read over than to skip
    int64_t n_regions;
};

struct tsr_reshard_rank {
    struct tsr_reshard_file *files; // in the order in which they are first read
    int n_files;
    uint64_t needed, read; // sums
    uint64_t verified;     // bytes read before, as its share of verifying the checkpoint
};

// Plans one rank's reads of the checkpoint in `dir`. `mesh` has the rank's place, chunks, V and W.
// The caller frees, also after a failure. TSR_EMODEL, TSR_ECONFIG, TSR_ENOMEM.
int tsr_reshard_plan(struct tsr_reshard_rank *out, const char *dir, const struct tsr_model *m,
                     const struct tsr_mesh *mesh);
void tsr_reshard_free(struct tsr_reshard_rank *r);

#endif
