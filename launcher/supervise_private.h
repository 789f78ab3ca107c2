// The supervisor's own state, shared by its files.
#ifndef TSR_LAUNCHER_SUPERVISE_PRIVATE_H
#define TSR_LAUNCHER_SUPERVISE_PRIVATE_H

#include <sys/types.h>
#include <uv.h>
#include "launcher/epoch.h"
#include "launcher/hosts.h"
#include "launcher/link.h"
#include "launcher/supervise.h"
#include "launcher/supervise_command.h"
#include "launcher/supervise_output.h"
#include "launcher/supervise_policy.h"

// A child process; `pid` 0: none was started.
struct tsr_process {
    pid_t pid;
    bool ended;
    int status; // of waitpid, when it ended
};

// One program after the other is waited for by running the loop until a condition holds; so the
// supervisor reads from top to bottom although everything goes on at once.
struct tsr_super {
    const struct tsr_supervise_opt *opt;
    char program[TSR_PATH_MAX], scratch[TSR_PATH_MAX];
    char token[17]; // names this run in its ranks' environment
    uint8_t secret[TSR_SECRET];
    int lock; // descriptor, held while this supervisor lives
    struct tsr_policy policy;
    struct tsr_hosts hosts;
    bool *host_lost; // per host
    uint64_t restarts;
    bool is_superseded; // another supervisor began a newer incarnation

    uv_loop_t loop;
    bool loop_is_open;
    uv_signal_t on_child, on_interrupt, on_terminate, on_hangup, on_user;
    bool told; // the sentence of a failure is on standard error already
    uv_timer_t tick;
    int signal, n_signals; // the first that asked for the end, and how many came
    double signal_s;

    struct tsr_process *probes; // (n_probes) of remote hosts
    int n_probes;

    // The incarnation that runs.
    uint64_t epoch;
    int64_t world; // ranks
    struct tsr_process coordinator, ranks;
    int n_coordinators; // started in this incarnation
    double coordinator_s;
    struct tsr_address address;
    struct tsr_link *link;
    double link_s, asked_s, stop_said_s;
    double heard_s, tended_s; // when the coordinator said something, when it was last tended
    bool is_silent;           // and was killed for it
    Tessera__Control__Hello hello;
    int ready_pipe; // the coordinator's standard output, or -1
    bool failed;    // a Failed came
    char cause[1024];
    double ranks_s;
    double alone_s; // when the coordinator was seen to have ended in order
    bool joined;    // at least one rank is known to the coordinator
    bool all_left;  // all were, and none is there any more
    double all_left_s;

    // What can be seen of its ranks from outside, when they are on this machine.
    struct tsr_rank_seen *seen;               // (world)
    int64_t n_seen, first_ended, failed_rank; // -1: none
    double looked_s, first_ended_s, failed_s;
    char first_host[TSR_HOST_NAME];
    bool first_is_sure; // it was not one of several that were found together
    bool all_joined;    // the coordinator knows all of them

    // Standard error of the ranks, when mpirun stands between.
    uv_poll_t err_poll;
    int err_pipe; // or -1
    bool err_ended;
    struct tsr_noise filter;
    struct tsr_buf pending, paragraphs;
};

// ---- supervise_loop.c
int tsr_super_loop_open(struct tsr_super *s);
void tsr_super_loop_close(struct tsr_super *s);
// Lets something happen, or a moment pass.
void tsr_super_turn(struct tsr_super *s);
// Lets things happen until done(s) or `timeout_s` from now. Returns whether done(s).
bool tsr_super_wait(struct tsr_super *s, bool (*done)(struct tsr_super *s), double timeout_s);
// True once the user must not be kept waiting: a second signal, or 60 s after the first.
bool tsr_super_must_end(const struct tsr_super *s);
int tsr_process_code(const struct tsr_process *c); // exit code, or 128 + signal
// Takes over standard error of mpirun; `fd` is closed with the incarnation.
int tsr_super_forward(struct tsr_super *s, int fd);
void tsr_super_forward_end(struct tsr_super *s);

// ---- supervise_coordinator.c
int tsr_super_coordinator_start(struct tsr_super *s);
// Restarts a coordinator that died, and speaks to the one that lives: to be called often.
int tsr_super_coordinator_tend(struct tsr_super *s);
// In order: it may finish what it does. Else at once.
void tsr_super_coordinator_end(struct tsr_super *s, bool in_order);

// ---- supervise_remote.c
// A host whose name nobody knows is a mistake, not one that is down: TSR_EUSAGE.
int tsr_super_check_names(const struct tsr_super *s);
// Asks every other host whether it answers, and ends there what an earlier incarnation left.
// Fills host_lost.
int tsr_super_probe_hosts(struct tsr_super *s);
// The address of this machine that other hosts of the run can reach; "127.0.0.1" without others.
int tsr_super_own_address(struct tsr_super *s, char out[static TSR_HOST_MAX]);

// ---- supervise_incarnation.c
// Runs the ranks once in layout `l`, until they ended and none of their processes is left. *code is
// how it ended.
int tsr_super_incarnation(struct tsr_super *s, const struct tsr_layout3 *l, int *code);

// ---- supervise_ranks.c
int tsr_super_ranks_open(struct tsr_super *s);
void tsr_super_ranks_close(struct tsr_super *s);
// What mpirun says of one that ended.
void tsr_super_ranks_hear(struct tsr_super *s, const char *paragraph);
// What the coordinator says of them.
void tsr_super_ranks_status(struct tsr_super *s, const Tessera__Control__Status *m);
// To be called often. Sets `failed` when a rank ended that the coordinator doesn't know, and mpirun
// does not notice.
void tsr_super_ranks_look(struct tsr_super *s);
// Whether it is known which rank ended first.
bool tsr_super_ranks_is_sure(const struct tsr_super *s);
// Whether a rank that failed is known: `cause` says which.
bool tsr_super_ranks_name(struct tsr_super *s);

// ---- supervise_folder.c
int tsr_super_lock(struct tsr_super *s);
int tsr_super_scratch(struct tsr_super *s);
int64_t tsr_super_committed(const struct tsr_super *s);

#endif
