// Who belongs to the run and is alive. Times are seconds of the coordinator's clock.
//
//   absent -- Hello --> present -- Bye --> left
//                       |    ^
//       connection ends v    | Hello within the grace
//                       lost --> dead: the run has failed
#ifndef TSR_LAUNCHER_COORDINATOR_MEMBERSHIP_H
#define TSR_LAUNCHER_COORDINATOR_MEMBERSHIP_H

#include <stdbool.h>
#include <stdint.h>
#include "control.pb-c.h"
#include "core/progress.h"

enum { TSR_MEMBER_HOST = 64 }; // bytes of a host's name

enum tsr_member_state {
    TSR_MEMBER_ABSENT,
    TSR_MEMBER_PRESENT,
    TSR_MEMBER_LOST,
    TSR_MEMBER_LEFT,
    TSR_MEMBER_DEAD,
};

struct tsr_member {
    enum tsr_member_state state;
    int conn; // when present
    char host[TSR_MEMBER_HOST + 1];
    uint64_t pid;
    double heard;   // last frame of it
    double lost_at; // when its connection ended
    // As its last heartbeat said.
    uint64_t step, collective;
    uint32_t phase, micro_batch;
    double since;        // none of the four has changed from then on
    uint64_t first_step; // completed when it joined
};

struct tsr_members {
    int world, tp, pp, dp; // 0 before the first rank's Hello
    uint64_t steps;        // of the whole run
    double began;          // first rank's Hello
    struct tsr_member *v;  // (world)
    int n_present, n_gone; // gone: left or dead
    // The longest that a rank stayed at one place of a phase before it went on; 0: never did.
    double longest[TSR_N_PHASES];
    double saved_at;            // when a save was last in flight
    uint64_t *stage_collective; // (pp) scratch of the search for a culprit
};

struct tsr_limits {
    double lost_s, grace_s, join_s, stall_s, stall_factor, first_s;
};

struct tsr_culprit {
    int rank;
    char cause[128];
};

void tsr_members_free(struct tsr_members *ms);

// Takes a rank's Hello: world and layout are those of the first one, and a rank that comes back is
// the same process. Sets *old to the connection that this one replaces, or -1. TSR_EREQUEST with
// the sentence for Refused; TSR_ENOMEM.
int tsr_members_hello(struct tsr_members *ms, const Tessera__Control__Hello *h, int conn,
                      double now, int *old);
void tsr_members_heartbeat(struct tsr_members *ms, int rank, const Tessera__Control__Heartbeat *h,
                           double now);
void tsr_members_lost(struct tsr_members *ms, int rank, double now); // connection ended, no Bye
void tsr_members_bye(struct tsr_members *ms, int rank);
void tsr_members_dead(struct tsr_members *ms, int rank);

// The coordinator itself stood still: nobody is to blame for the time.
void tsr_members_forgive(struct tsr_members *ms, double pause_s, double now);

// True when a rank is dead or hangs; who is to blame, and why. `saving`: a save is in flight, so
// that a rank may wait for it.
bool tsr_members_check(struct tsr_members *ms, const struct tsr_limits *l, double now, bool saving,
                       struct tsr_culprit *out);
// True when a rank whose connection ended is known to have ended itself; `ended` may be NULL.
bool tsr_members_ended(const struct tsr_members *ms,
                       bool (*ended)(void *arg, const char *host, uint64_t pid), void *arg,
                       struct tsr_culprit *out);
// The stall rule alone (stall.c).
bool tsr_members_stalled(struct tsr_members *ms, const struct tsr_limits *l, double now,
                         bool saving, struct tsr_culprit *out);

// "forward of micro-batch 3, collective 118".
void tsr_member_operation(const struct tsr_member *m, char *out, int n_bytes);

#endif
