// The coordinator of a run: who is there, who died or hangs, and the two-phase commit of
// checkpoints. A pure state machine: time, network and disk are behind one seam, so that a
// simulation can run it (tests/sim) and the same calls in the same order always do the same.
// Not for more than one thread; never calls itself through the seam.
//
// What a rank's agent does on every new connection, in this order and nothing before it:
//   Hello, and waits for Welcome; the parts of its ShardMap; SaveDone or SaveAbort of the last save
//   whose end it was told, sent back as it came, when there is one; then, for the save that it has
//   begun and not heard the end of: SavePlan (rank 0, when made) and SaveReady, in any order.
// After that it answers, as often as it is asked and from memory when it has answered before:
//   SaveWrite by SaveVote (the first one makes it write), SaveDigest by SaveDigests. Other votes
//   and digests that it resends unasked do no harm.
// So a coordinator that was started again (same epoch) knows everything after one round trip.
// A rank whose connection ends has tsr_coord_opt.grace_s to come back, unless its process ended
// too.
#ifndef TSR_LAUNCHER_COORDINATOR_COORDINATOR_H
#define TSR_LAUNCHER_COORDINATOR_COORDINATOR_H

#include <stdbool.h>
#include <stdint.h>
#include "core/checkpoint.h"
#include "checkpoint.pb-c.h"
#include "control.pb-c.h"

enum {
    TSR_COORD_MAX_RANKS = 65536,
    TSR_COORD_MAX_CONNS = 131072, // conn is 0 .. this - 1: a slot of the shell, used again
    TSR_COORD_MAX_FILES = 65536,  // of one checkpoint
    TSR_COORD_MAX_RANGES = 1 << 22,
    TSR_COORD_STATUS_RANKS = 4096, // that one Status lists: it must fit in a frame
};

struct tsr_coord;

// Each may be repeated by a coordinator that took over in the same epoch: WRITE_MANIFEST to
// SYNC_PARENT succeed and change nothing when the directory is already published as this very
// save. `value` of the answer is 0 where nothing else is said.
enum tsr_disk_step {
    TSR_DISK_WRITE_MANIFEST,
    TSR_DISK_SYNC_MANIFEST,
    TSR_DISK_SYNC_DIRS,   // the temporary directory and its folders
    TSR_DISK_CHECK_EPOCH, // value: the epoch that the run directory has now
    TSR_DISK_RENAME,
    TSR_DISK_SYNC_PARENT,
    TSR_DISK_RETAIN,           // removes what is older than the newest `keep`
    TSR_DISK_REMOVE_TEMPORARY, // of a save that failed
    TSR_DISK_FIND_NEWEST,      // value: step of the newest checkpoint, made durable first; 0: none
    TSR_DISK_N_STEPS,
};

// What the disk steps work on.
struct tsr_coord_save {
    uint64_t step, epoch;
    uint32_t attempt;
    char temporary[128], directory[64]; // base names below RUN_DIR/checkpoints
    uint64_t range_bytes;
    struct tsr_planned_file *files; // (n_files) sorted by path
    int n_files;
    struct tsr_digest *digests; // (n_ranges) in the order of the files
    uint64_t n_ranges;
};

struct tsr_disk_job {
    uint64_t id;
    enum tsr_disk_step step;
    int64_t keep;                      // RETAIN
    const struct tsr_coord_save *save; // NULL for RETAIN and FIND_NEWEST
};

// No call may call back into the coordinator. Messages are valid during the call only.
struct tsr_coord_seam {
    void *arg;
    double (*now)(void *arg); // monotonic seconds
    // Queued; never fails here.
    void (*send)(void *arg, int conn, uint16_t type, const ProtobufCMessage *m);
    // Closes a connection, after what was queued for it; the coordinator has forgotten it.
    void (*drop)(void *arg, int conn);
    // One at a time, answered by tsr_coord_disk_done; the job and its save live until then.
    void (*disk)(void *arg, const struct tsr_disk_job *job);
    // Once: the first rank that died or hangs; rank = world when it is none of them: a newer epoch
    // has begun, or no rank ever came. Ranks and supervisors were told already; the shell ends the
    // job.
    void (*failed)(void *arg, const Tessera__Control__Failed *f);
    // Whether this process is known to have ended; may be NULL. Asked about ranks whose connection
    // ended: where it is true nobody waits for them to come back.
    bool (*ended)(void *arg, const char *host, uint64_t pid);
};

// Zeros stand for the defaults given.
struct tsr_coord_opt {
    const char *run_name, *run_dir;
    uint64_t epoch;      // 1 or more
    double heartbeat_s;  // 0.25
    double lost_s;       // 3: a rank's silence that is its death
    double grace_s;      // 1: a rank whose connection ended without Bye may come back
    double join_s;       // 60: for the other ranks, after the first one's Hello
    double nobody_s;     // 300: for the first rank
    double stall_s;      // 3: the least stall under live heartbeats that is a hang
    double stall_factor; // 5: times the longest that the phase took so far
    double first_s;      // 120: in a phase that was never completed
    double save_s;       // 1800: without any progress a save is aborted
    int64_t keep;        // checkpoints; 0: all
    uint64_t restarts;   // incarnations before this one, for the status
};

// Asks for FIND_NEWEST at once. TSR_ENOMEM.
int tsr_coord_open(struct tsr_coord **out, const struct tsr_coord_opt *opt,
                   const struct tsr_coord_seam *seam);
// Only while no disk job is in flight: its save goes with the coordinator. NULL is fine.
void tsr_coord_close(struct tsr_coord *c);

// A frame that arrived on a connection, from its Hello on. Negative: the shell sends what was
// queued and closes the connection, which is forgotten already (no tsr_coord_closed).
int tsr_coord_message(struct tsr_coord *c, int conn, uint16_t type, const ProtobufCMessage *m);
// The connection ended. One that is forgotten or never said Hello is fine.
void tsr_coord_closed(struct tsr_coord *c, int conn);
// Every 50 ms or more often. A longer gap is taken for a pause of the coordinator itself, and
// no rank's silence.
void tsr_coord_tick(struct tsr_coord *c);
// rc negative: `error` is one sentence.
void tsr_coord_disk_done(struct tsr_coord *c, uint64_t id, int rc, const char *error,
                         uint64_t value);

// Fills `out` (an initialised message): strings point into the coordinator and are valid until its
// next call, the list is freed by tsr_coord_status_free. More ranks than TSR_COORD_STATUS_RANKS:
// only the first are listed. TSR_ENOMEM.
int tsr_coord_status(const struct tsr_coord *c, Tessera__Control__Status *out);
void tsr_coord_status_free(Tessera__Control__Status *s);

// True when there was at least one rank, all are gone and no disk job is in flight: nothing is
// left to do.
bool tsr_coord_over(const struct tsr_coord *c);

#endif
