// A rank's agent: one thread with one libuv loop, the only thing in a rank that speaks to the
// coordinator. It sends heartbeats out of core/progress.h, brings checkpoints through their two
// phases, sets progress->stop when asked to, and ends the process when it is told to or when the
// coordinator is gone for good.
//
// A connection that breaks is made again, with the address of RUN_DIR/coordinator/address when the
// coordinator was started anew elsewhere; what the coordinator has to know is then said again
// (launcher/coordinator/coordinator.h), so that training never notices.
//
// All calls are made by the main thread. None of them is in the way of a step: they copy into a
// mailbox and wake the loop.
#ifndef TSR_LAUNCHER_AGENT_H
#define TSR_LAUNCHER_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include "checkpoint.pb-c.h"
#include "control.pb-c.h"
#include "core/checkpoint.h"
#include "core/progress.h"

struct tsr_agent;

struct tsr_agent_opt {
    int rank, world, tp, pp, dp;
    const char *host;    // of this rank, for messages
    const char *run_dir; // with the run's key
    const char *address; // of the coordinator, "host:port"
    uint64_t epoch;
    int64_t step, steps;           // completed so far; of the whole run
    struct tsr_progress *progress; // must outlive the agent
    double open_s;                 // longest wait for the coordinator in tsr_agent_open; 0: 30
    double gone_s;                 // beyond lost_ms until a missing coordinator is given up; 0: 5
    // How the process ends: NULL logs the reason and calls _exit. After another one has returned,
    // the agent does nothing any more; a save in flight has failed.
    void (*end)(void *arg, int exit_code, const char *reason);
    void *arg;
    // NULL, or whether a peer has failed (struct tsr_comm_ops), asked four times a second by the
    // agent's thread. Asking ends the main thread's waits; a process that hasn't ended peer_s later
    // is ended with the failure's text.
    int (*poll)(void *poll_arg);
    void *poll_arg;
    double peer_s; // 0: 2
};

// Starts the thread and waits for the coordinator's Welcome. Strings are copied. TSR_EPEER when the
// coordinator refuses this rank, TSR_ETIMEOUT when it cannot be reached in time: the text says what
// the last attempt met. TSR_EUSAGE, TSR_EDATA for a bad key or address.
int tsr_agent_open(struct tsr_agent **out, const struct tsr_agent_opt *opt);

// Says Bye and ends the thread. A save in flight fails with TSR_EINTERRUPTED, after the operation
// that runs. NULL is fine.
void tsr_agent_close(struct tsr_agent *a, int exit_code);

// What this rank owns; once, before the first save. TSR_ENOMEM.
int tsr_agent_shard_map(struct tsr_agent *a, const Tessera__Checkpoint__ShardMap *map);

// Rank 0, after each step. Copies, never blocks; the newest report is what counts.
void tsr_agent_step(struct tsr_agent *a, const Tessera__Control__StepReport *r);

struct tsr_save_result {
    uint64_t step;
    int code; // 0: committed
    char error[512];
    char directory[64]; // base name of the checkpoint
};

// A save's work, on worker threads, never two at once. No MPI in them.
struct tsr_save_ops {
    void *arg;
    // Rank 0: the temporary directory, all files at full size, small files written. The agent frees
    // the plan.
    int (*begin)(void *arg, struct tsr_save_plan *plan);
    // Own regions, on the disk. The agent frees the vote.
    int (*write)(void *arg, struct tsr_save_vote *vote);
    // Reads ranges back: `out->ranges`, those of the spans in their order.
    int (*digest)(void *arg, const struct tsr_span *spans, int n, struct tsr_save_vote *out);
    // Committed or failed: the last call of this save, the snapshot may be used again.
    void (*ended)(void *arg, const struct tsr_save_result *r);
};

// Begins the save of the snapshot taken after `step`; `attempt` counts the saves of this
// incarnation from 1, equally on all ranks. Returns at once. One at a time: asserts that none is in
// flight. TSR_EPEER when `end` was called before.
int tsr_agent_save(struct tsr_agent *a, int64_t step, uint32_t attempt,
                   const struct tsr_save_ops *ops);
bool tsr_agent_save_busy(struct tsr_agent *a);

// Waits until no save is in flight; `out` (or NULL) gets the last one's result, all zero before the
// first. TSR_ETIMEOUT.
int tsr_agent_save_wait(struct tsr_agent *a, double timeout_s, struct tsr_save_result *out);

#endif
