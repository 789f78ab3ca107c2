#include "launcher/saver.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/snapshot.h"
#include "launcher/saver_map.h"

enum { MAX_ERROR = 512, CLOSE_S = 60 };

// What the main thread and the agent's threads share is guarded by `lock`, or belongs to whoever
// has the save: the main thread until it hands it to the agent, the agent's worker until `ended`.
struct tsr_saver {
    struct tsr_net *net;
    struct tsr_agent *agent;
    char run_dir[TSR_PATH_MAX], source_dir[TSR_PATH_MAX], tokenizer_dir[TSR_PATH_MAX]; // "": none
    uint64_t epoch;
    double timeout_s;
    bool direct;
    struct tsr_snapshot *snapshot;
    uint32_t attempt;
    struct tsr_save_ops ops;

    struct tsr_checkpoint *ckpt; // of the save in flight
    struct tsr_state state;      // likewise, run_yaml owned

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool in_flight; // until `ended`
    int64_t committed;
    int failed; // of a save that has ended; 0 when it was told
    char error[MAX_ERROR];
};

// ---- what the agent calls

static int open_checkpoint(struct tsr_saver *s) {
    struct tsr_checkpoint_opt opt = {.run_dir = s->run_dir,
                                     .model = s->net->m,
                                     .table = &s->net->tensors,
                                     .dtype = s->net->ctx->dtype,
                                     .step = s->state.step,
                                     .epoch = s->epoch,
                                     .attempt = s->attempt};
    return s->ckpt ? 0 : tsr_checkpoint_open(&s->ckpt, &opt);
}

static const char *or_null(const char *text) {
    return text[0] ? text : NULL;
}

static int begin(void *arg, struct tsr_save_plan *plan) {
    struct tsr_saver *s = arg;
    TSR_TRY(open_checkpoint(s));
    TSR_TRY(tsr_checkpoint_begin(s->ckpt, &s->state, or_null(s->source_dir),
                                 or_null(s->tokenizer_dir)));
    return tsr_checkpoint_plan(s->ckpt, plan);
}

static int write_all(void *arg, struct tsr_save_vote *vote) {
    struct tsr_saver *s = arg;
    TSR_TRY(open_checkpoint(s));
    TSR_TRY(tsr_snapshot_write(s->snapshot, s->ckpt));
    TSR_TRY(tsr_checkpoint_flush(s->ckpt, vote));
    // Ranks of a host write each other's elements. All that vote yes have together written what
    // all of them own; each answers for its own.
    vote->elements = tsr_snapshot_elements(s->snapshot);
    return 0;
}

static int digest(void *arg, const struct tsr_span *spans, int n, struct tsr_save_vote *out) {
    struct tsr_saver *s = arg;
    TSR_TRY(open_checkpoint(s));
    return tsr_checkpoint_digest(s->ckpt, spans, n, out);
}

static void ended(void *arg, const struct tsr_save_result *r) {
    struct tsr_saver *s = arg;
    tsr_checkpoint_close(s->ckpt);
    s->ckpt = NULL;
    tsr_state_free(&s->state);
    pthread_mutex_lock(&s->lock);
    s->failed = r->code;
    if (r->code == 0)
        s->committed = (int64_t)r->step;
    else
        snprintf(s->error, sizeof s->error, "%s", r->error);
    s->in_flight = false;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

// ---- interface

static int copy_options(struct tsr_saver *s, const struct tsr_saver_opt *opt) {
    s->net = opt->net;
    s->agent = opt->agent;
    s->epoch = opt->epoch;
    s->direct = opt->direct;
    s->timeout_s = opt->timeout_s > 0.0 ? opt->timeout_s : 3600.0;
    TSR_TRY(tsr_path_join(s->run_dir, opt->run_dir, ""));
    if (opt->source_dir)
        TSR_TRY(tsr_path_join(s->source_dir, opt->source_dir, ""));
    if (opt->tokenizer_dir)
        TSR_TRY(tsr_path_join(s->tokenizer_dir, opt->tokenizer_dir, ""));
    return 0;
}

static int publish_map(const struct tsr_saver *s) {
    Tessera__Checkpoint__ShardMap *map = tsr_saver_map(s->snapshot);
    if (!map)
        return tsr_fail(TSR_ENOMEM, "no memory for the shard map");
    int rc = tsr_agent_shard_map(s->agent, map);
    tessera__checkpoint__shard_map__free_unpacked(map, NULL);
    return rc;
}

int tsr_saver_open(struct tsr_saver **out, const struct tsr_saver_opt *opt) {
    struct tsr_saver *s = calloc(1, sizeof *s);
    if (!s)
        return tsr_fail(TSR_ENOMEM, "no memory for checkpoints");
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->committed = -1;
    s->ops = (struct tsr_save_ops){s, begin, write_all, digest, ended};
    int rc = copy_options(s, opt);
    if (rc == 0)
        rc = (opt->direct ? tsr_snapshot_open_direct : tsr_snapshot_open)(&s->snapshot, s->net);
    if (rc == 0)
        rc = publish_map(s);
    if (rc < 0) {
        tsr_saver_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

static void set_in_flight(struct tsr_saver *s, bool in_flight) {
    pthread_mutex_lock(&s->lock);
    s->in_flight = in_flight;
    pthread_mutex_unlock(&s->lock);
}

static bool wait_for_end(struct tsr_saver *s) {
    struct timespec until;
    int err = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += CLOSE_S;
    pthread_mutex_lock(&s->lock);
    while (s->in_flight && err == 0)
        err = pthread_cond_timedwait(&s->changed, &s->lock, &until);
    bool ended_now = !s->in_flight;
    pthread_mutex_unlock(&s->lock);
    return ended_now;
}

void tsr_saver_close(struct tsr_saver *s) {
    if (!s || !wait_for_end(s))
        return;
    tsr_snapshot_close(s->snapshot);
    tsr_checkpoint_close(s->ckpt);
    tsr_state_free(&s->state);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int tsr_saver_poll(struct tsr_saver *s) {
    int rc = 0;
    pthread_mutex_lock(&s->lock);
    if (s->failed < 0)
        rc = tsr_fail((enum tsr_code)s->failed, "%s", s->error);
    s->failed = 0;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

int tsr_saver_wait(struct tsr_saver *s) {
    struct tsr_progress *progress = s->net->comm->progress;
    struct tsr_save_result r;
    double begun = tsr_now();
    for (;;) {
        int rc = tsr_agent_save_wait(s->agent, 1.0, &r);
        if (rc != TSR_ETIMEOUT)
            return rc < 0 ? rc : tsr_saver_poll(s);
        if (tsr_now() - begun > s->timeout_s)
            return tsr_fail(TSR_ETIMEOUT, "waited %.0f s for checkpoint %lld to be written",
                            s->timeout_s, (long long)s->state.step);
        progress->micro_batch++; // a slow disk is no stalled rank
    }
}

static int copy_state(struct tsr_saver *s, const struct tsr_state *state) {
    tsr_state_free(&s->state); // of a save that never began
    s->state = *state;
    s->state.run_yaml = strdup(state->run_yaml);
    return s->state.run_yaml ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's state");
}

int tsr_saver_save(struct tsr_saver *s, const struct tsr_state *state, bool wait) {
    TSR_ASSERT(wait || !s->direct);
    TSR_TRY(tsr_saver_wait(s));
    TSR_TRY(tsr_snapshot_take(s->snapshot));
    TSR_TRY(copy_state(s, state));
    s->attempt++;
    set_in_flight(s, true);
    int rc = tsr_agent_save(s->agent, state->step, s->attempt, &s->ops);
    if (rc < 0) {
        set_in_flight(s, false);
        return rc;
    }
    return wait ? tsr_saver_wait(s) : 0;
}

int64_t tsr_saver_committed(struct tsr_saver *s) {
    pthread_mutex_lock(&s->lock);
    int64_t step = s->committed;
    pthread_mutex_unlock(&s->lock);
    return step;
}
