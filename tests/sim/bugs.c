// Wrong decisions in place of the coordinator's own (launcher/coordinator/rules.c).
#include "core/error.h"
#include "tests/sim/sim.h"

#define ORDER(...)                                                                                 \
    static const enum tsr_disk_step order[] = {__VA_ARGS__};                                       \
    rules.commit = order;                                                                          \
    rules.n_commit = sizeof order / sizeof *order

static struct tsr_coord_rules rules;

static bool always_u64(uint64_t a, uint64_t b) {
    (void)a, (void)b;
    return true;
}

static bool any_attempt(const struct tsr_coord_save *s, uint64_t step, uint32_t attempt) {
    (void)s, (void)step, (void)attempt;
    return true;
}

static bool any_vote(bool ok) {
    (void)ok;
    return true;
}

static bool never_mind(void) {
    return false;
}

static bool hole_is_fine(enum tsr_cover found) {
    return found == TSR_COVER_WHOLE || found == TSR_COVER_HOLE;
}

static bool overlap_is_fine(enum tsr_cover found) {
    return found == TSR_COVER_WHOLE || found == TSR_COVER_OVERLAP;
}

static bool enough_digests(const struct tsr_save *s) {
    (void)s;
    return true;
}

static bool living_voted(const struct tsr_save *s, const struct tsr_members *ms) {
    for (int r = 0; r < ms->world; r++)
        if (!s->ranks[r].voted && ms->v[r].state == TSR_MEMBER_PRESENT)
            return false;
    return true;
}

static bool death_is_fine(const struct tsr_save *s) {
    (void)s;
    return false;
}

static void other_order(enum sim_bug bug) {
    if (bug == BUG_NO_MANIFEST_SYNC) {
        ORDER(TSR_DISK_WRITE_MANIFEST, TSR_DISK_SYNC_DIRS, TSR_DISK_CHECK_EPOCH, TSR_DISK_RENAME,
              TSR_DISK_SYNC_PARENT);
    } else if (bug == BUG_NO_DIRS_SYNC) {
        ORDER(TSR_DISK_WRITE_MANIFEST, TSR_DISK_SYNC_MANIFEST, TSR_DISK_CHECK_EPOCH,
              TSR_DISK_RENAME, TSR_DISK_SYNC_PARENT);
    } else if (bug == BUG_RENAME_EARLY) {
        ORDER(TSR_DISK_WRITE_MANIFEST, TSR_DISK_CHECK_EPOCH, TSR_DISK_RENAME,
              TSR_DISK_SYNC_MANIFEST, TSR_DISK_SYNC_DIRS, TSR_DISK_SYNC_PARENT);
    } else if (bug == BUG_NO_EPOCH_CHECK) {
        ORDER(TSR_DISK_WRITE_MANIFEST, TSR_DISK_SYNC_MANIFEST, TSR_DISK_SYNC_DIRS, TSR_DISK_RENAME,
              TSR_DISK_SYNC_PARENT);
    } else if (bug == BUG_NO_PARENT_SYNC) {
        ORDER(TSR_DISK_WRITE_MANIFEST, TSR_DISK_SYNC_MANIFEST, TSR_DISK_SYNC_DIRS,
              TSR_DISK_CHECK_EPOCH, TSR_DISK_RENAME);
        rules.announce_after = TSR_DISK_RENAME;
    }
}

const struct tsr_coord_rules *sim_rules(enum sim_bug bug) {
    rules = tsr_coord_rules;
    other_order(bug);
    if (bug == BUG_ANNOUNCE_EARLY)
        rules.announce_after = TSR_DISK_RENAME;
    if (bug == BUG_ANNOUNCE_AT_VOTES)
        rules.announce_after = TSR_DISK_WRITE_MANIFEST;
    if (bug == BUG_STALE_EPOCH)
        rules.welcome = always_u64;
    if (bug == BUG_OTHER_ATTEMPT)
        rules.same_save = any_attempt;
    if (bug == BUG_FAILED_VOTE)
        rules.vote_counts = any_vote;
    if (bug == BUG_MISSING_DIGEST)
        rules.digests_known = enough_digests;
    if (bug == BUG_HOLE)
        rules.covers = hole_is_fine;
    if (bug == BUG_OVERLAP)
        rules.covers = overlap_is_fine;
    if (bug == BUG_ELEMENTS)
        rules.adds_up = always_u64;
    if (bug == BUG_FORGETFUL)
        rules.remembers = never_mind;
    if (bug == BUG_DEAD_RANK) {
        rules.all_voted = living_voted;
        rules.death_aborts = death_is_fine;
        rules.adds_up = always_u64;
    }
    return &rules;
}
