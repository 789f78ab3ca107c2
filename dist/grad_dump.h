// A step's gradients as files, one for each rank, for whoever compares layouts.
#ifndef TSR_DIST_GRAD_DUMP_H
#define TSR_DIST_GRAD_DUMP_H

#include "core/io.h"
#include "dist/train.h"

// DIR/step-00000002-rank-0003.safetensors
int tsr_grad_dump_path(char out[static TSR_PATH_MAX], const char *dir, int64_t step, int rank);

// Right after tsr_trainer_step: writes what this rank's slices hold of each gradient, before
// clipping, as F32 tensors "NAME@R0,C0" that lie at row R0, column C0 of the canonical tensor NAME;
// and on rank 0 the scalars "loss" and "grad_norm" (F64). Not collective. TSR_EIO, TSR_ENOMEM.
int tsr_grad_dump(const struct tsr_trainer *t, const struct tsr_step_result *r, const char *dir);

#endif
