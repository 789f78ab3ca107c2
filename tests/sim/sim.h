// A deterministic simulation of a run's control plane: the real coordinator (launcher/coordinator)
// behind its seam, models of all that surrounds it, and one seed that decides everything.
//
//   sim.c      the queue of events, and what a run consists of
//   net.c      connections: in order, delayed, cut, partitioned; messages really packed
//   disk.c     a file system that forgets at a crash what was not synced
//   rank.c     a rank: its agent's connection, a caricature of its training
//   rank_save.c, rank_say.c   its part of a save, and its messages
//   proc.c     processes of the coordinator: started, paused, killed, orphaned
//   faults.c   what goes wrong when, and the supervisor that starts the next epoch
//   bugs.c     wrong decisions, to prove that the invariants notice
//
// Invariants (search for sim_violation): a directory with a checkpoint's name is whole, durable and
// of one epoch; nobody publishes for an epoch that has been fenced off; a checkpoint that was
// announced stays, whatever crashes; a step is never published twice with different contents; when
// the network heals, saves end and new ones succeed; nobody is called dead who is only late.
#ifndef TSR_TESTS_SIM_SIM_H
#define TSR_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "launcher/coordinator/coordinator_private.h"

enum {
    MAX_WORLD = 5,
    MAX_ROWS = 40,
    ROW_BYTES = 16,
    RANGE_BYTES = 64,
    ROWS_PER_RANGE = RANGE_BYTES / ROW_BYTES,
    MAX_DIGESTS = MAX_ROWS / ROWS_PER_RANGE,
    MAX_DIRS = 96,
    MAX_PENDING = 96,
    MAX_EPOCHS = 32,
    MAX_RANKS = MAX_EPOCHS * MAX_WORLD, // of all incarnations
    MAX_PROCS = 64,                     // coordinators
    MAX_CONNS = 2048,                   // ever
    MAX_SLOTS = 64,
    MAX_ATTEMPTS = 64,
    MAX_FAULTS = 6,
    MAX_ANNOUNCED = 256,
};

// Every seeded bug; BUG_NONE is the product.
#define SIM_BUGS(X)                                                                                \
    X(NONE, "the product")                                                                         \
    X(NO_MANIFEST_SYNC, "the manifest is not synced")                                              \
    X(NO_DIRS_SYNC, "the directories are not synced")                                              \
    X(RENAME_EARLY, "the rename comes before the syncs")                                           \
    X(NO_EPOCH_CHECK, "the epoch is not checked before the rename")                                \
    X(NO_PARENT_SYNC, "the parent directory is not synced")                                        \
    X(ANNOUNCE_EARLY, "SaveDone goes out before the parent is synced")                             \
    X(ANNOUNCE_AT_VOTES, "SaveDone goes out when all have voted")                                  \
    X(STALE_EPOCH, "ranks of another epoch are welcome")                                           \
    X(OTHER_ATTEMPT, "a vote of another attempt counts")                                           \
    X(FAILED_VOTE, "a vote that says no counts")                                                   \
    X(MISSING_DIGEST, "ranges without a digest are committed")                                     \
    X(HOLE, "holes in the shard map are ignored")                                                  \
    X(OVERLAP, "overlaps in the shard map are ignored")                                            \
    X(ELEMENTS, "sums of elements are ignored")                                                    \
    X(DEAD_RANK, "the missing vote of a dead rank doesn't matter")                                 \
    X(DIGEST_TO_NOBODY, "the digests of the last rank are asked of nobody")                        \
    X(FORGETFUL, "ends of saves are not told again")                                               \
    X(VOTE_BEFORE_SYNC, "ranks vote before their data are on the disk")                            \
    X(NO_FENCE, "a new epoch leaves old temporaries where they are")

enum sim_bug {
#define X(name, text) BUG_##name,
    SIM_BUGS(X)
#undef X
        N_BUGS
};
const struct tsr_coord_rules *sim_rules(enum sim_bug bug);

// ---- disk

enum sim_name { NAME_NONE, NAME_TEMPORARY, NAME_FINAL };

struct sim_dir {
    bool used;
    uint64_t step, epoch; // of its name, while temporary
    uint32_t attempt;
    int n_rows;
    uint64_t seen[MAX_ROWS], durable[MAX_ROWS];     // contents of each row, 0: never written
    bool files_durable;                             // their names
    bool manifest, manifest_synced, manifest_named; // there; its contents, its name durable
    uint64_t digest[MAX_DIGESTS];                   // what it says
    enum sim_name name, durable_name;
};

struct sim_id {
    uint64_t step, epoch;
    uint32_t attempt;
};

struct sim_move {
    int dir[2]; // -1: none
    enum sim_name to[2];
};

struct sim_disk {
    struct sim_dir dirs[MAX_DIRS];
    struct sim_move pending[MAX_PENDING]; // moves in the parent directory that aren't synced
    int n_pending;
    uint64_t epoch, fenced; // the run's; and the newest that has renamed older temporaries away
};

// ---- everything else

enum sim_kind {
    EV_DELIVER,  // a: connection, b: direction, data
    EV_CLOSE,    // a: connection, b: the side that learns of it
    EV_TICK,     // a: coordinator
    EV_DISK,     // a: coordinator
    EV_PULSE,    // a: rank: heartbeat and everything periodical
    EV_CONNECT,  // a: rank
    EV_STEP,     // a: rank: its part of a step is done
    EV_SNAPSHOT, // a: rank
    EV_PLAN,     // a: rank 0: the temporary directory is made
    EV_WRITTEN,  // a: rank, b: attempt
    EV_SYNCED,   // a: rank, b: attempt
    EV_DIGESTED, // a: rank, b: attempt
    EV_FAULT,    // a: fault
    EV_UNPAUSE,  // a: coordinator
    EV_START,    // a: epoch: its coordinator is started, again perhaps
    EV_NEXT,     // the next epoch is taken
    EV_FENCE,    // a: epoch
    EV_LAUNCH,   // a: epoch: its ranks
    EV_KILL,     // a: epoch: what is left of it
};

struct sim_event {
    double at;
    uint64_t order;
    enum sim_kind kind;
    int a, b;
    uint16_t type;
    size_t n_bytes;
    uint8_t *data;
};

struct sim_conn {
    int rank, proc; // indices
    bool open[2];   // as each side believes: [0] the rank's, [1] the coordinator's
    double last[2]; // delivery of the last message towards each side
};

struct sim_span {
    uint64_t first, count;
};

struct sim_save { // as a rank's agent knows it
    bool active, planned, ready, writing, voted, digesting, digested;
    bool fails;         // before all is written
    bool ok, digest_ok; // as voted and digested
    uint64_t step;
    uint32_t attempt;
    double began;
    struct tsr_digest vote[MAX_DIGESTS]; // of the ranges that it wrote alone
    struct sim_span spans[MAX_DIGESTS];  // asked for
    size_t n_spans;
    struct tsr_digest answer[MAX_DIGESTS];
};

struct sim_rank {
    bool alive, stopped, stalled; // stopped: SIGSTOP; stalled: its main thread only
    bool waiting, holding;        // for the others of its step; for its last save to end
    bool welcome, healed;         // healed: heard of a commit that began after the network healed
    int epoch, index, conn;       // conn -1: none
    double told, cut_at;          // last frame from the coordinator; when its connection went
    double partition_until;
    uint64_t collective;
    uint64_t step_of[MAX_ATTEMPTS];
    struct sim_save save;
    struct tsr_outcome last;
};

struct sim_proc { // a coordinator
    bool alive;
    int epoch;
    struct tsr_coord *core;
    struct sim_conn *slots[MAX_SLOTS]; // by the connection's number in the core
    bool busy; // a disk job is in flight: a copy of it, as memory goes at a kill
    struct tsr_disk_job job;
    struct tsr_coord_save save;
    struct tsr_digest digests[MAX_DIGESTS];
    double paused_until;
    bool failed;
};

enum sim_map_fault { MAP_GOOD, MAP_SHIFTED, MAP_LAZY };

struct sim_epoch {
    bool launched, restarting, orphan;
    bool hurt; // something happened that may count as a failure
    int world, first_rank, proc;
    uint64_t step, again; // again: the step that it rolled back to, and saves once more
    int n_waiting;
    uint32_t saves;                     // attempts begun
    int from[MAX_WORLD], to[MAX_WORLD]; // rows that each rank publishes and writes
    enum sim_map_fault fault;
    int odd, garbage; // the rank that is wrong; the row that it spoils, or -1
};

enum sim_fault_kind {
    FAULT_KILL_RANK,
    FAULT_STOP_RANK, // SIGSTOP: no heartbeats either
    FAULT_STALL_RANK,
    FAULT_KILL_COORDINATOR,
    FAULT_PAUSE_COORDINATOR,
    FAULT_CUT, // one connection
    FAULT_CUT_ALL,
    FAULT_PARTITION, // of one rank
    FAULT_ORPHAN,    // the supervisor believes the incarnation dead
    FAULT_POWER,
    N_FAULTS
};

struct sim_fault {
    enum sim_fault_kind kind;
    int at_step; // fires when a disk job of this step starts; -1: at its time
    double at;
    bool fired;
};

struct sim {
    uint64_t seed, rng;
    enum sim_bug bug;
    bool trace, over;
    char violation[512]; // empty: none
    double now, heal_at, end_at;
    uint64_t order, n_events;
    struct sim_event *heap;
    int n_heap, cap_heap;
    struct sim_disk disk;
    struct sim_rank ranks[MAX_RANKS];
    struct sim_proc procs[MAX_PROCS];
    struct sim_conn conns[MAX_CONNS];
    struct sim_epoch epochs[MAX_EPOCHS];
    int n_ranks, n_procs, n_conns, epoch; // epoch: the newest
    int rows;
    struct sim_fault faults[MAX_FAULTS];
    int n_faults;
    int every;       // steps between saves
    bool keep_going; // after a failed save
    double delay, vote_fails, disk_fails, bad_steps, last_cut;
    struct sim_id announced[MAX_ANNOUNCED], retired[MAX_ANNOUNCED]; // retired: older than kept
    int n_announced, n_retired;
    uint64_t newest_announced, n_commits;
};

// sim.c
struct sim_result {
    uint64_t n_events, n_commits;
    char violation[512];
};
void sim_run(uint64_t seed, enum sim_bug bug, bool trace, struct sim_result *out);
uint64_t sim_random(struct sim *s, uint64_t n); // below n
double sim_uniform(struct sim *s, double lo, double hi);
bool sim_chance(struct sim *s, double p);
void sim_at(struct sim *s, double at, enum sim_kind kind, int a, int b);
void sim_push(struct sim *s, const struct sim_event *e); // takes e->data
__attribute__((format(printf, 2, 3))) void sim_violation(struct sim *s, const char *fmt, ...);
__attribute__((format(printf, 2, 3))) void sim_trace(struct sim *s, const char *fmt, ...);
uint64_t sim_truth(uint64_t epoch, uint64_t step, int row); // what training makes of a row

// net.c
int sim_connect(struct sim *s, int rank, int proc);
void sim_send(struct sim *s, int conn, int to_side, uint16_t type, const ProtobufCMessage *m);
void sim_close(struct sim *s, int conn, int by_side); // the other side learns it later
void sim_cut(struct sim *s, int conn); // what is under way is lost, both sides learn it later
void sim_deliver(struct sim *s, const struct sim_event *e);
void sim_closed(struct sim *s, const struct sim_event *e);

// disk.c
struct sim_dir *sim_find(struct sim *s, uint64_t step, uint64_t epoch, uint32_t attempt);
void sim_make_temporary(struct sim *s, uint64_t step, uint64_t epoch, uint32_t attempt);
uint64_t sim_digest(const struct sim_dir *d, int range, bool durable);
int sim_disk_step(struct sim *s, struct sim_proc *p, uint64_t *value); // 0 or a negative code
void sim_fence(struct sim *s, uint64_t epoch);
void sim_power_loss(struct sim *s);
uint64_t sim_newest(struct sim *s);
void sim_announce(struct sim *s, const struct sim_proc *p, uint64_t step, uint32_t attempt);
bool sim_announced(const struct sim *s, int epoch, uint64_t step, uint32_t attempt);

// rank.c
void sim_rank_start(struct sim *s, int rank);
void sim_rank_event(struct sim *s, const struct sim_event *e);
void sim_rank_message(struct sim *s, int rank, uint16_t type, const ProtobufCMessage *m);
void sim_rank_lost(struct sim *s, int rank); // its connection ended
void sim_rank_kill(struct sim *s, int rank);
void sim_rank_train(struct sim *s, int rank); // its part of the next step

// rank_save.c: a rank's part of a save
void sim_save_begin(struct sim *s, int rank, uint64_t step, uint32_t attempt);
void sim_save_event(struct sim *s, const struct sim_event *e);
void sim_save_message(struct sim *s, int rank, uint16_t type, const ProtobufCMessage *m);
void sim_save_resume(struct sim *s, int rank); // on a new connection

// rank_say.c: messages
void sim_say(struct sim *s, int rank, uint16_t type, const ProtobufCMessage *m);
void sim_say_hello(struct sim *s, int rank);
void sim_say_map(struct sim *s, int rank);
void sim_say_heartbeat(struct sim *s, int rank);
void sim_say_plan(struct sim *s, int rank);
void sim_say_ready(struct sim *s, int rank);
void sim_say_vote(struct sim *s, int rank, uint64_t step, uint32_t attempt, bool ok);
void sim_say_digests(struct sim *s, int rank);
void sim_say_outcome(struct sim *s, int rank);
bool sim_wrote_alone(struct sim *s, int rank, int range);

// proc.c
void sim_proc_start(struct sim *s, int epoch);
void sim_proc_kill(struct sim *s, int proc);
void sim_proc_event(struct sim *s, const struct sim_event *e);
int sim_proc_message(struct sim *s, int conn, uint16_t type, const ProtobufCMessage *m);

// faults.c
void sim_plan_faults(struct sim *s);
void sim_fault_event(struct sim *s, const struct sim_event *e);
void sim_disk_starts(struct sim *s, int proc, enum tsr_disk_step step);
void sim_give_up(struct sim *s, int epoch, double in_s, bool orphan); // the supervisor, on it

static inline struct sim_epoch *sim_epoch_of(struct sim *s, const struct sim_rank *r) {
    return &s->epochs[r->epoch];
}

#endif
