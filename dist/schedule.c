#include "dist/schedule.h"
#include "core/error.h"

int tsr_schedule_size(int n_micro_batches, int chunks) {
    TSR_ASSERT(n_micro_batches >= 1 && chunks >= 1);
    int n = 0;
    TSR_ASSERT(!__builtin_mul_overflow(n_micro_batches, chunks, &n));
    TSR_ASSERT(!__builtin_mul_overflow(n, 2, &n));
    return n;
}

// The k-th forward or backward of a rank. Micro-batches go in groups of pp; a group passes through
// all chunks (backward: from the last to the first) before the next group enters. Without chunks
// this is plain ascending order.
static struct tsr_action nth(enum tsr_action_kind kind, int k, int group, int chunks) {
    int chunk = k / group % chunks;
    return (struct tsr_action){
        .kind = (int16_t)kind,
        .chunk = (int16_t)(kind == TSR_FORWARD ? chunk : chunks - 1 - chunk),
        .micro_batch = k / (group * chunks) * group + k % group,
    };
}

// Forwards that run before the first backward: all of them in GPipe; as many as it takes the first
// micro-batch to come back in 1F1B; in the interleaved schedule two more per later stage, because
// a group of pp micro-batches stands between two chunks.
static int64_t warm_up(enum tsr_pipeline kind, int pp, int pp_rank, int chunks, int total) {
    int64_t later = pp - pp_rank - 1;
    int64_t n = total;
    if (kind == TSR_PIPE_1F1B)
        n = later;
    else if (kind == TSR_PIPE_INTERLEAVED)
        n = 2 * later + (int64_t)(chunks - 1) * pp;
    return n < total ? n : total;
}

int tsr_schedule_fill(enum tsr_pipeline kind, int pp, int pp_rank, int chunks, int n_micro_batches,
                      struct tsr_action *out) {
    TSR_ASSERT(pp >= 1 && pp_rank >= 0 && pp_rank < pp);
    int total = tsr_schedule_size(n_micro_batches, chunks) / 2;
    bool interleaved = kind == TSR_PIPE_INTERLEAVED;
    if (!interleaved && chunks != 1)
        return tsr_fail(TSR_ECONFIG,
                        "parallel.chunks: expected 1 unless parallel.schedule is interleaved, "
                        "found %d",
                        chunks);
    if (chunks > INT16_MAX)
        return tsr_fail(TSR_ECONFIG, "parallel.chunks: expected at most %d, found %d", INT16_MAX,
                        chunks);
    if (interleaved && n_micro_batches % pp != 0)
        return tsr_fail(TSR_ECONFIG,
                        "parallel.schedule: interleaved needs a number of micro-batches per step "
                        "that pp = %d divides, found %d",
                        pp, n_micro_batches);
    int group = interleaved ? pp : n_micro_batches;
    int64_t ahead = warm_up(kind, pp, pp_rank, chunks, total);
    int forward = 0, backward = 0;
    for (int i = 0; i < 2 * total; i++) {
        // After the warm-up each forward is followed by one backward.
        if (forward < total && forward - backward <= ahead)
            out[i] = nth(TSR_FORWARD, forward++, group, chunks);
        else
            out[i] = nth(TSR_BACKWARD, backward++, group, chunks);
    }
    return 0;
}

int tsr_schedule_in_flight(const struct tsr_action *a, int n_actions, int chunk) {
    int now = 0, most = 0;
    for (int i = 0; i < n_actions; i++) {
        if (a[i].chunk != chunk)
            continue;
        now += a[i].kind == TSR_FORWARD ? 1 : -1;
        most = now > most ? now : most;
    }
    return most;
}
