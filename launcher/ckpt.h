// What the parts of `tessera ckpt` share.
#ifndef TSR_LAUNCHER_CKPT_H
#define TSR_LAUNCHER_CKPT_H

#include <jansson.h>
#include "core/checkpoint_audit.h"
#include "core/run.h"
#include "launcher/units.h"

// Each takes its own name as argv[0] and returns 0 or a negative code.
int tsr_ckpt_ls(int argc, char **argv);
int tsr_ckpt_verify(int argc, char **argv);
int tsr_ckpt_diff(int argc, char **argv);
int tsr_ckpt_reshard(int argc, char **argv);

// Prints the object in one line and releases it. NULL: out of memory.
int tsr_print_json(json_t *root);
// Sets obj.key and takes `value`; false when out of memory, also with NULL for either.
bool tsr_json_set(json_t *obj, const char *key, json_t *value);
// A name or a message as JSON, with `?` for each byte that is no UTF-8. NULL: out of memory.
json_t *tsr_json_text(const char *s);

// Verifies one checkpoint with a progress bar. Every fault goes to `problems` (an array of {file,
// first, end, what}), or with NULL to standard output, a line each. Returns 0 and fills `a`.
int tsr_ckpt_check(const char *dir, json_t *problems, struct tsr_audit *a);

// The layout that trained a checkpoint, by the run file stamped in it: false when unreadable.
bool tsr_ckpt_trained_by(const char *dir, struct tsr_layout3 *layout);

#endif
