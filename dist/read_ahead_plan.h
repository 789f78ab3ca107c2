// What the ranks of one host read, in which pieces: a pure function of what they need.
#ifndef TSR_DIST_READ_AHEAD_PLAN_H
#define TSR_DIST_READ_AHEAD_PLAN_H

#include "dist/read_ahead.h"

enum { TSR_AHEAD_PIECE = 4 << 20 }; // bytes at most

struct tsr_ahead_piece { // of a file
    int file;
    uint64_t offset; // a multiple of the page
    size_t n_bytes;
    int64_t range;    // of the file, which is digested, all its pieces being there; -1: none
    bool first, last; // of the range's pieces
};

struct tsr_ahead_listed {
    char name[320]; // below the checkpoint's directory
    uint64_t size;
    size_t first_unit;
    int64_t first_range, n_ranges;
};

struct tsr_ahead_plan {
    struct tsr_ahead_listed *files;
    int n_files;
    uint64_t unit;                  // bytes: what is needed is noted by units of a file
    size_t n_units, units_bytes;    // of all files; in memory, up to the page
    uint64_t range_bytes;           // of what is digested on the way; 0: nothing is
    int64_t n_ranges;               // of all files
    float *digested;                // (n_ranges): 1 where this host does, later where any does
    struct tsr_ahead_piece *pieces; // in the order of files and offsets
    int64_t n_pieces, cap_pieces;
};

// Sizes and names; `d` is NULL when nothing is verified. TSR_ENOMEM. The caller closes, also after
// a failure.
int tsr_ahead_plan_open(struct tsr_ahead_plan *p, const struct tsr_ahead_opt *opt,
                        const struct tsr_checkpoint_digests *d);
void tsr_ahead_plan_close(struct tsr_ahead_plan *p);
// Sets units[i], (n_units) and zero before, of all that this rank needs.
void tsr_ahead_plan_mark(const struct tsr_ahead_plan *p, const struct tsr_ahead_opt *opt,
                         unsigned char *units);
// The pieces, from the units of n ranks. A range of which half is needed is read whole: that is
// less work than reading it again to digest it.
int tsr_ahead_plan_make(struct tsr_ahead_plan *p, char *const *units, int n);
bool tsr_ahead_plan_digested(const struct tsr_ahead_plan *p, const char *file, int64_t range);

#endif
