#include "launcher/agent.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "launcher/agent_private.h"

enum { TICK_MS = 50 }; // how often the loop comes by when nothing happens

// What the main thread left.
static void take_mail(struct tsr_agent *a) {
    uv_mutex_lock(&a->lock);
    Tessera__Checkpoint__ShardMap **map = a->new_map;
    struct tsr_agent_save *save = a->new_save;
    int n_map = a->n_new_map;
    a->new_map = NULL;
    a->n_new_map = 0;
    a->new_save = NULL;
    if (a->has_new_report) {
        a->report = a->new_report;
        a->has_report = a->report_news = true;
        a->has_new_report = false;
    }
    bool closing = a->closing, dead = a->state == TSR_AGENT_ENDED;
    uv_mutex_unlock(&a->lock);
    if (map) {
        tsr_map_free(a->map, a->n_map);
        a->map = map;
        a->n_map = n_map;
        for (int i = 0; i < n_map; i++)
            tsr_agent_send(a, TESSERA__CONTROL__FRAME_TYPE__FRAME_SHARD_MAP, &map[i]->base);
    }
    if (save) {
        tsr_agent_save_begin(a, save);
        free(save);
    }
    if (closing || dead)
        tsr_agent_save_fail(a, closing ? TSR_EINTERRUPTED : TSR_EPEER,
                            closing ? "the run ended during the save" : "the coordinator is gone");
}

static void on_wake(uv_async_t *w) {
    take_mail(w->data);
}

static void on_timer(uv_timer_t *t) {
    (void)t; // only wakes the loop: see on_check
}

static void close_handles(struct tsr_agent *a) {
    uv_close((uv_handle_t *)&a->wake, NULL);
    uv_close((uv_handle_t *)&a->timer, NULL);
    uv_close((uv_handle_t *)&a->check, NULL);
}

// In order, once no save is in flight: Bye, then every handle. The loop ends by itself.
static void leave(struct tsr_agent *a) {
    Tessera__Control__Bye bye = TESSERA__CONTROL__BYE__INIT;
    a->leaving = true;
    tsr_agent_beat(a); // with the last report
    bye.exit_code = (uint32_t)a->exit_code;
    tsr_agent_send(a, TESSERA__CONTROL__FRAME_TYPE__FRAME_BYE, &bye.base);
    if (a->link)
        tsr_link_finish(a->link);
    close_handles(a);
}

// After the loop has read all that had arrived: what is silent now is silent.
static void on_check(uv_check_t *c) {
    struct tsr_agent *a = c->data;
    tsr_agent_link_pass(a);
    uv_mutex_lock(&a->lock);
    bool closing = a->closing;
    uv_mutex_unlock(&a->lock);
    if (!closing || a->leaving)
        return;
    take_mail(a); // a save that was asked for just before
    if (!a->save.active)
        leave(a);
}

static void run(void *arg) {
    struct tsr_agent *a = arg;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL); // signals are the main thread's
    a->passed = tsr_now();
    uv_run(&a->loop, UV_RUN_DEFAULT);
    TSR_ASSERT(uv_loop_close(&a->loop) == 0);
}

static void fill_hello(struct tsr_agent *a) {
    tessera__control__hello__init(&a->hello);
    a->hello.role = TESSERA__CONTROL__ROLE__ROLE_RANK;
    a->hello.epoch = a->opt.epoch;
    a->hello.rank = (uint32_t)a->opt.rank;
    a->hello.world = (uint32_t)a->opt.world;
    a->hello.tp = (uint32_t)a->opt.tp;
    a->hello.pp = (uint32_t)a->opt.pp;
    a->hello.dp = (uint32_t)a->opt.dp;
    a->hello.host = a->host;
    a->hello.pid = (uint64_t)getpid();
    a->hello.step = (uint64_t)a->opt.step;
    a->hello.steps = (uint64_t)a->opt.steps;
}

static int check_options(struct tsr_agent *a, const struct tsr_agent_opt *opt) {
    struct tsr_address at;
    TSR_TRY(tsr_address_parse(opt->address, &at));
    TSR_TRY(tsr_path_join(a->run_dir, opt->run_dir, ""));
    TSR_TRY(tsr_run_key(a->run_dir, a->secret));
    snprintf(a->address, sizeof a->address, "%s", opt->address);
    tsr_frame_text(a->host, sizeof a->host, opt->host);
    a->opt = *opt;
    a->opt.host = a->host;
    a->opt.run_dir = a->run_dir;
    a->opt.address = a->address;
    a->opt.open_s = opt->open_s > 0 ? opt->open_s : 30.0;
    a->opt.gone_s = opt->gone_s > 0 ? opt->gone_s : 5.0;
    a->opt.peer_s = opt->peer_s > 0 ? opt->peer_s : 2.0;
    fill_hello(a);
    return 0;
}

static int fail_uv(const char *what, int rc) {
    return tsr_fail(rc == UV_ENOMEM ? TSR_ENOMEM : TSR_EIO, "the rank's agent gets no %s: %s", what,
                    uv_strerror(rc));
}

static int start(struct tsr_agent *a) {
    int rc = uv_loop_init(&a->loop);
    if (rc < 0)
        return fail_uv("event loop", rc);
    a->loop.data = a;
    rc = uv_async_init(&a->loop, &a->wake, on_wake);
    if (rc < 0) {
        uv_loop_close(&a->loop);
        return fail_uv("descriptor", rc);
    }
    TSR_ASSERT(uv_timer_init(&a->loop, &a->timer) == 0 && uv_check_init(&a->loop, &a->check) == 0);
    TSR_ASSERT(uv_mutex_init(&a->lock) == 0 && uv_cond_init(&a->changed) == 0);
    a->wake.data = a->check.data = a;
    uv_timer_start(&a->timer, on_timer, 0, TICK_MS);
    uv_check_start(&a->check, on_check);
    rc = uv_thread_create(&a->thread, run, a);
    if (rc == 0)
        return 0;
    close_handles(a);
    uv_run(&a->loop, UV_RUN_DEFAULT);
    uv_loop_close(&a->loop);
    uv_mutex_destroy(&a->lock);
    uv_cond_destroy(&a->changed);
    return fail_uv("thread", rc);
}

int tsr_agent_open(struct tsr_agent **out, const struct tsr_agent_opt *opt) {
    struct tsr_agent *a = calloc(1, sizeof *a);
    if (!a)
        return tsr_fail(TSR_ENOMEM, "no memory for the rank's agent");
    int rc = check_options(a, opt);
    if (rc == 0)
        rc = start(a);
    if (rc < 0) {
        explicit_bzero(a->secret, sizeof a->secret);
        free(a);
        return rc;
    }
    uv_mutex_lock(&a->lock);
    while (a->state == TSR_AGENT_OPENING)
        uv_cond_wait(&a->changed, &a->lock);
    rc = a->open_code;
    if (rc < 0)
        tsr_fail((enum tsr_code)rc, "%s", a->open_error);
    uv_mutex_unlock(&a->lock);
    if (rc < 0)
        tsr_agent_close(a, tsr_exit_code(rc));
    else
        *out = a;
    return rc;
}

void tsr_agent_close(struct tsr_agent *a, int exit_code) {
    if (!a)
        return;
    uv_mutex_lock(&a->lock);
    a->closing = true;
    a->exit_code = exit_code;
    uv_async_send(&a->wake);
    uv_mutex_unlock(&a->lock);
    uv_thread_join(&a->thread);
    tsr_map_free(a->map, a->n_map);
    tsr_map_free(a->new_map, a->n_new_map);
    if (a->last_end)
        protobuf_c_message_free_unpacked(a->last_end, NULL);
    uv_mutex_destroy(&a->lock);
    uv_cond_destroy(&a->changed);
    explicit_bzero(a->secret, sizeof a->secret);
    free(a);
}

int tsr_agent_shard_map(struct tsr_agent *a, const Tessera__Checkpoint__ShardMap *map) {
    Tessera__Checkpoint__ShardMap **parts;
    int n;
    TSR_TRY(tsr_map_split(map, &parts, &n));
    uv_mutex_lock(&a->lock);
    tsr_map_free(a->new_map, a->n_new_map);
    a->new_map = parts;
    a->n_new_map = n;
    uv_async_send(&a->wake);
    uv_mutex_unlock(&a->lock);
    return 0;
}

void tsr_agent_step(struct tsr_agent *a, const Tessera__Control__StepReport *r) {
    uv_mutex_lock(&a->lock);
    a->new_report = *r;
    a->has_new_report = true;
    uv_async_send(&a->wake);
    uv_mutex_unlock(&a->lock);
}

int tsr_agent_save(struct tsr_agent *a, int64_t step, uint32_t attempt,
                   const struct tsr_save_ops *ops) {
    struct tsr_agent_save *s = calloc(1, sizeof *s);
    if (!s)
        return tsr_fail(TSR_ENOMEM, "no memory for a save");
    s->step = (uint64_t)step;
    s->attempt = attempt;
    s->ops = *ops;
    uv_mutex_lock(&a->lock);
    TSR_ASSERT(!a->save_busy);
    bool up = a->state == TSR_AGENT_UP;
    if (up) {
        a->new_save = s;
        a->save_busy = true;
        uv_async_send(&a->wake);
    }
    uv_mutex_unlock(&a->lock);
    if (up)
        return 0;
    free(s);
    return tsr_fail(TSR_EPEER, "rank %d has no coordinator any more", a->opt.rank);
}

bool tsr_agent_save_busy(struct tsr_agent *a) {
    uv_mutex_lock(&a->lock);
    bool busy = a->save_busy;
    uv_mutex_unlock(&a->lock);
    return busy;
}

int tsr_agent_save_wait(struct tsr_agent *a, double timeout_s, struct tsr_save_result *out) {
    double end = tsr_now() + timeout_s, left = timeout_s;
    uv_mutex_lock(&a->lock);
    for (; a->save_busy && left > 0; left = end - tsr_now())
        uv_cond_timedwait(&a->changed, &a->lock, (uint64_t)(left * 1e9));
    bool busy = a->save_busy;
    if (!busy && out)
        *out = a->last_result;
    uv_mutex_unlock(&a->lock);
    if (busy)
        return tsr_fail(TSR_ETIMEOUT, "the checkpoint in flight took longer than %.0f s",
                        timeout_s);
    return 0;
}
