// Checkpoints of a training run: takes the snapshot, and lets the agent and the coordinator bring
// it to the disk while training goes on (docs/checkpoint.md).
//
// All ranks call open, save and close together, on their main threads. At most one save is in
// flight; what is done in the background is done without MPI.
#ifndef TSR_LAUNCHER_SAVER_H
#define TSR_LAUNCHER_SAVER_H

#include "core/checkpoint.h"
#include "dist/net.h"
#include "launcher/agent.h"

struct tsr_saver;

struct tsr_saver_opt {
    struct tsr_net *net; // must outlive the saver
    struct tsr_agent *agent;
    const char *run_dir;       // copied, as are the next two
    const char *source_dir;    // generation_config.json comes from here; or NULL
    const char *tokenizer_dir; // or NULL
    uint64_t epoch;
    double timeout_s; // of one save in flight; 0: an hour
    bool direct;      // no second buffer: every save waits for its end
};

// Allocates the second buffer, if any, and publishes this rank's shard map.
int tsr_saver_open(struct tsr_saver **out, const struct tsr_saver_opt *opt);
// Before or after tsr_agent_close, which ends the save in flight. With the agent still there it
// waits for that save, a minute at most: one that doesn't end keeps the memory that it works on.
// NULL is fine.
void tsr_saver_close(struct tsr_saver *s);

// Waits for the save in flight (its failure is returned, and nothing is begun), copies the state
// and has it written: `wait`: returns when the checkpoint is committed, else at once, which a
// direct saver can't. `state` is copied. Not collective: the ranks' codes may differ.
int tsr_saver_save(struct tsr_saver *s, const struct tsr_state *state, bool wait);

// The failure of a save that has ended since the last call, or 0. Not collective and never waits:
// the loop asks at each step and agrees on the answer.
int tsr_saver_poll(struct tsr_saver *s);

// Waits for the save in flight, if any, and returns its code.
int tsr_saver_wait(struct tsr_saver *s);

// Step of the newest checkpoint that was committed through this saver; -1: none.
int64_t tsr_saver_committed(struct tsr_saver *s);

#endif
