// What the parts of `tessera ckpt` share.
#ifndef TSR_LAUNCHER_CKPT_H
#define TSR_LAUNCHER_CKPT_H

#include "core/checkpoint_audit.h"
#include "core/run.h"
#include "launcher/json_out.h"
#include "launcher/units.h"

// Each takes its own name as argv[0] and returns 0 or a negative code.
int tsr_ckpt_ls(int argc, char **argv);
int tsr_ckpt_verify(int argc, char **argv);
int tsr_ckpt_diff(int argc, char **argv);
int tsr_ckpt_reshard(int argc, char **argv);

// Verifies one checkpoint with a progress bar. Every fault goes to `problems` (an array of {file,
// first, end, what}), or with NULL to standard output, a line each. Returns 0 and fills `a`.
int tsr_ckpt_check(const char *dir, json_t *problems, struct tsr_audit *a);

// The layout that trained a checkpoint, by the run file stamped in it: false when unreadable.
bool tsr_ckpt_trained_by(const char *dir, struct tsr_layout3 *layout);

#endif
