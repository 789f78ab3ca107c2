// What the files of the coordinator share; not for other modules, but for tests/sim.
#ifndef TSR_LAUNCHER_COORDINATOR_COORDINATOR_PRIVATE_H
#define TSR_LAUNCHER_COORDINATOR_COORDINATOR_PRIVATE_H

#include "launcher/coordinator/coordinator.h"
#include "launcher/coordinator/membership.h"
#include "launcher/coordinator/save.h"
#include "launcher/coordinator/shard_map.h"

// The decisions that the safety of a commit rests on, in one table: the simulation puts a wrong one
// in the place of each, one after another, and must notice.
struct tsr_coord_rules {
    const enum tsr_disk_step *commit; // (n_commit) disk steps of a commit, in their order
    int n_commit;
    enum tsr_disk_step announce_after;
    bool (*welcome)(uint64_t epoch, uint64_t ranks);     // a rank's epoch, in its Hello
    bool (*epoch_holds)(uint64_t epoch, uint64_t found); // in the run directory, before the rename
    bool (*same_save)(const struct tsr_coord_save *s, uint64_t step, uint32_t attempt);
    bool (*vote_counts)(bool ok);
    bool (*all_voted)(const struct tsr_save *s, const struct tsr_members *ms);
    bool (*death_aborts)(const struct tsr_save *s);
    bool (*covers)(enum tsr_cover found);
    bool (*adds_up)(uint64_t expected, uint64_t found);
    bool (*digests_known)(const struct tsr_save *s);
    // Who digests the i-th of the ranges that no vote had; the same for the same votes, so that a
    // coordinator that was started again asks the same ranks.
    int (*digester)(uint64_t i, uint64_t n_missing, int world);
    bool (*remembers)(void); // outcomes of earlier saves
};
extern const struct tsr_coord_rules tsr_coord_rules;

struct tsr_conn {
    bool used;
    Tessera__Control__Role role;
    int rank;
};

// A disk job in flight or waiting.
struct tsr_queued {
    struct tsr_disk_job job;
    struct tsr_save *save; // a reference, or NULL
};

enum {
    TSR_COORD_OUTCOMES = 16, // remembered
    TSR_COORD_QUEUE = 64,    // disk jobs
};

struct tsr_coord {
    struct tsr_coord_opt opt; // defaults filled in; strings owned
    struct tsr_coord_seam seam;
    const struct tsr_coord_rules *rules;
    double opened, waiting_since; // waiting: for the first rank, without own pauses
    double last_tick, next_pulse; // last tick: or whatever came since
    struct tsr_conn *conns;       // (n_conns) by number
    int n_conns;
    struct tsr_members members;
    struct tsr_shard_maps maps; // once there are members
    struct tsr_save *save;      // in flight, or NULL
    uint32_t newest_attempt;    // that was begun or ended
    struct tsr_outcome outcomes[TSR_COORD_OUTCOMES];
    int n_outcomes; // so far; the last one is at (n_outcomes - 1) % TSR_COORD_OUTCOMES
    struct tsr_queued queue[TSR_COORD_QUEUE]; // the first `queued`, [0] in flight
    int queued;
    uint64_t next_job;
    uint64_t committed_step;
    bool failed, stopping, has_last;
    Tessera__Control__Stop stop; // to ranks, when stopping; its reason is stop_reason
    char stop_reason[512];
    Tessera__Control__StepReport last;
};

int tsr_coord_open_with(struct tsr_coord **out, const struct tsr_coord_opt *opt,
                        const struct tsr_coord_seam *seam, const struct tsr_coord_rules *rules);

// ---- coordinator.c
void tsr_coord_tell_rank(struct tsr_coord *c, int rank, uint16_t type, const ProtobufCMessage *m);
void tsr_coord_tell_ranks(struct tsr_coord *c, uint16_t type, const ProtobufCMessage *m);
// The run is lost: aborts the save, tells ranks, supervisors and the shell. rank = world:
// none of them is to blame.
void tsr_coord_fail(struct tsr_coord *c, int rank, const char *cause);

// ---- save_rules.c: what a save does with messages
int tsr_coord_save_plan(struct tsr_coord *c, int rank, const Tessera__Checkpoint__SavePlan *m);
int tsr_coord_save_ready(struct tsr_coord *c, int rank, const Tessera__Checkpoint__SaveReady *m);
int tsr_coord_save_vote(struct tsr_coord *c, int rank, const Tessera__Checkpoint__SaveVote *m);
int tsr_coord_save_digests(struct tsr_coord *c, int rank,
                           const Tessera__Checkpoint__SaveDigests *m);
// A rank tells a new coordinator how a save ended.
void tsr_coord_save_heard(struct tsr_coord *c, const struct tsr_outcome *o);
// A rank is no longer there (dead, or it left): a save that needs it can't succeed.
void tsr_coord_save_without(struct tsr_coord *c, int rank, const char *why);
void tsr_coord_save_tick(struct tsr_coord *c, double now);
// Ranks that the save in flight waits for.
int tsr_save_waiting_for(const struct tsr_save *s);

// ---- commit.c: disk steps and ends of saves
// False when too many jobs wait.
bool tsr_coord_disk(struct tsr_coord *c, enum tsr_disk_step step, struct tsr_save *s);
void tsr_coord_commit(struct tsr_coord *c); // all digests are known
// Ends the save in flight; one that was published can't be aborted and stays.
__attribute__((format(printf, 3, 4))) void tsr_coord_abort(struct tsr_coord *c, uint32_t exit_code,
                                                           const char *fmt, ...);
const struct tsr_outcome *tsr_coord_outcome(const struct tsr_coord *c, uint64_t step,
                                            uint32_t attempt); // NULL: not known
void tsr_coord_tell_outcome(struct tsr_coord *c, int rank, const struct tsr_outcome *o);

#endif
