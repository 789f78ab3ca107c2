// The decisions that the safety of a commit rests on.
#include "launcher/coordinator/coordinator_private.h"

static bool equal(uint64_t a, uint64_t b) {
    return a == b;
}

static bool same_save(const struct tsr_coord_save *s, uint64_t step, uint32_t attempt) {
    return s->step == step && s->attempt == attempt;
}

static bool vote_counts(bool ok) {
    return ok;
}

static bool all_voted(const struct tsr_save *s, const struct tsr_members *ms) {
    return s->n_voted == ms->world;
}

static bool death_aborts(const struct tsr_save *s) {
    return !s->renaming;
}

static bool covers(enum tsr_cover found) {
    return found == TSR_COVER_WHOLE;
}

static bool digests_known(const struct tsr_save *s) {
    return s->n_known == s->out.n_ranges;
}

static int digester(uint64_t i, uint64_t n_missing, int world) {
    return (int)(i * (uint64_t)world / n_missing);
}

static bool remembers(void) {
    return true;
}

static const enum tsr_disk_step commit[] = {
    TSR_DISK_WRITE_MANIFEST, TSR_DISK_SYNC_MANIFEST, TSR_DISK_SYNC_DIRS,
    TSR_DISK_CHECK_EPOCH,    TSR_DISK_RENAME,        TSR_DISK_SYNC_PARENT,
};

const struct tsr_coord_rules tsr_coord_rules = {
    .commit = commit,
    .n_commit = sizeof commit / sizeof *commit,
    .announce_after = TSR_DISK_SYNC_PARENT,
    .welcome = equal,
    .epoch_holds = equal,
    .same_save = same_save,
    .vote_counts = vote_counts,
    .all_voted = all_voted,
    .death_aborts = death_aborts,
    .covers = covers,
    .adds_up = equal,
    .digests_known = digests_known,
    .digester = digester,
    .remembers = remembers,
};
