// The run file that is stamped in a checkpoint (state.json, `run`).
#ifndef TSR_CORE_RUN_STAMP_H
#define TSR_CORE_RUN_STAMP_H

#include "core/run.h"

// Reads a stamped run file; rules that span fields aren't checked. `where` names it in messages.
// TSR_ECONFIG when it isn't one. The caller frees with tsr_run_free.
int tsr_run_read_stamp(struct tsr_run *r, const char *yaml, const char *where);

// Calls back for each field that differs, in the order of the table, with both values as YAML.
typedef int (*tsr_run_difference_fn)(void *arg, const char *field, const char *a, const char *b);
int tsr_run_each_difference(const struct tsr_run *a, const struct tsr_run *b,
                            tsr_run_difference_fn fn, void *arg);

#endif
