#include "launcher/coordinator/loop.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "core/checkpoint_publish.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "launcher/coordinator/disk.h"
#include "launcher/coordinator/metrics_http.h"
#include "launcher/coordinator/server.h"
#include "launcher/supervise_spawn.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

enum { TICK_MS = 20 };

struct tsr_coordinator {
    uv_loop_t *loop;
    uv_timer_t timer; // wakes the loop; the tick is taken in `check`
    uv_check_t check;
    struct tsr_coord *core;
    struct tsr_server *server;
    struct tsr_disk *disk;
    struct tsr_metrics_http *metrics;
    struct tsr_address address;
    double ticked;
    double save_began; // of the first SaveReady; 0: no save
    struct tsr_metrics_extra extra;
    bool failure_told; // to a supervisor, who says it to the user
    void (*failed)(void *arg, const Tessera__Control__Failed *f);
    void *arg;
};

static double seam_now(void *arg) {
    (void)arg;
    return tsr_now();
}

// Metrics watch the frames go by: a save lasts from its first SaveReady to its end.
static void count_save(struct tsr_coordinator *c, uint16_t type) {
    if (type == FRAME(SAVE_READY) && c->save_began == 0)
        c->save_began = tsr_now();
    if ((type != FRAME(SAVE_DONE) && type != FRAME(SAVE_ABORT)) || c->save_began == 0)
        return;
    if (type == FRAME(SAVE_DONE)) {
        c->extra.saves++;
        c->extra.save_seconds = tsr_now() - c->save_began;
    } else {
        c->extra.saves_failed++;
    }
    c->save_began = 0;
}

static void seam_send(void *arg, int conn, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_coordinator *c = arg;
    count_save(c, type);
    c->failure_told |= type == FRAME(FAILED);
    tsr_server_send(c->server, conn, type, m);
}

static void seam_drop(void *arg, int conn) {
    struct tsr_coordinator *c = arg;
    tsr_server_drop(c->server, conn);
}

static void seam_disk(void *arg, const struct tsr_disk_job *job) {
    struct tsr_coordinator *c = arg;
    tsr_disk_start(c->disk, job);
}

static void seam_failed(void *arg, const Tessera__Control__Failed *f) {
    struct tsr_coordinator *c = arg;
    enum tsr_log_level level = c->failure_told ? TSR_LOG_DEBUG : TSR_LOG_ERROR;
    if (f->host[0])
        tsr_log(level, "rank %" PRIu32 " on %s: %s during %s, after step %" PRIu64, f->rank,
                f->host, f->cause, f->operation, f->step);
    else // the coordinator itself was superseded
        tsr_log(level, "coordinator: %s", f->cause);
    if (c->failed)
        c->failed(c->arg, f);
}

// Only of processes of this host; another one that runs in a container of the same name is
// restarted a little earlier than it had to be.
static bool seam_ended(void *arg, const char *host, uint64_t pid) {
    char own[TSR_HOST_MAX] = "";
    (void)arg;
    gethostname(own, sizeof own - 1);
    return strcmp(own, host) == 0 && !tsr_process_lives((pid_t)pid);
}

static int on_message(void *arg, int conn, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_coordinator *c = arg;
    if (type == FRAME(SAVE_READY))
        count_save(c, type);
    return tsr_coord_message(c->core, conn, type, m);
}

static void on_conn_closed(void *arg, int conn) {
    struct tsr_coordinator *c = arg;
    tsr_coord_closed(c->core, conn);
}

static void on_disk_done(void *arg, uint64_t id, int rc, const char *error, uint64_t value) {
    struct tsr_coordinator *c = arg;
    tsr_coord_disk_done(c->core, id, rc, error, value);
}

static void on_timer(uv_timer_t *t) {
    (void)t;
}

// Right after the loop has read all that had arrived, so that a heartbeat that lay in the socket
// while this process waited for a core counts before its absence does.
static void on_check(uv_check_t *check) {
    struct tsr_coordinator *c = check->data;
    double now = tsr_now();
    if (now - c->ticked < TICK_MS * 0.5e-3)
        return;
    c->ticked = now;
    tsr_coord_tick(c->core);
}

static int page(void *arg, struct tsr_buf *out) {
    struct tsr_coordinator *c = arg;
    struct tsr_server_counts counts = tsr_server_counts(c->server);
    Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
    c->extra.connections = counts.open;
    c->extra.connections_refused = counts.refused;
    TSR_TRY(tsr_coord_status(c->core, &s));
    int rc = tsr_metrics_page(out, &s, &c->extra);
    tsr_coord_status_free(&s);
    return rc;
}

static int open_server(struct tsr_coordinator *c, const struct tsr_coordinator_opt *opt) {
    struct tsr_server_opt so = {.loop = c->loop,
                                .host = opt->host ? opt->host : "127.0.0.1",
                                .port = opt->port,
                                .epoch = opt->core.epoch,
                                .message = on_message,
                                .closed = on_conn_closed,
                                .arg = c};
    TSR_TRY(tsr_run_key(opt->core.run_dir, so.secret));
    int rc = tsr_server_open(&c->server, &so);
    explicit_bzero(so.secret, sizeof so.secret);
    return rc;
}

static int open_core(struct tsr_coordinator *c, const struct tsr_coord_opt *opt) {
    const struct tsr_coord_seam seam = {.arg = c,
                                        .now = seam_now,
                                        .send = seam_send,
                                        .drop = seam_drop,
                                        .disk = seam_disk,
                                        .failed = seam_failed,
                                        .ended = seam_ended};
    TSR_TRY(tsr_disk_open(&c->disk, c->loop, opt->run_dir, on_disk_done, c));
    return tsr_coord_open(&c->core, opt, &seam);
}

// Where others reach this coordinator: a wildcard is no place to connect to.
static int publish_address(struct tsr_coordinator *c, const struct tsr_coordinator_opt *opt) {
    struct tsr_address *a = &c->address;
    const char *host = opt->host ? opt->host : "127.0.0.1";
    snprintf(a->host, sizeof a->host, "%s", host);
    if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
        if (gethostname(a->host, sizeof a->host - 1) < 0)
            return tsr_fail(TSR_EIO, "cannot read this host's name");
    a->port = tsr_server_port(c->server);
    a->metrics_port = c->metrics ? tsr_metrics_http_port(c->metrics) : 0;
    a->pid = getpid();
    a->epoch = opt->core.epoch;
    return tsr_address_write(opt->core.run_dir, a);
}

static void open_metrics(struct tsr_coordinator *c, int port) {
    if (port != TSR_METRICS_NONE && tsr_metrics_http_open(&c->metrics, c->loop, port, page, c) < 0)
        tsr_warn("coordinator: %s", tsr_error_text());
}

// Each connection takes a descriptor; the usual soft limit of 1024 is less than there are places.
static void raise_limit(void) {
    struct rlimit r;
    rlim_t want = 2 * TSR_SERVER_PLACES;
    if (getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_cur >= want)
        return;
    r.rlim_cur = r.rlim_max < want ? r.rlim_max : want;
    setrlimit(RLIMIT_NOFILE, &r);
}

static int open_all(struct tsr_coordinator *c, const struct tsr_coordinator_opt *opt) {
    raise_limit();
    TSR_TRY(tsr_epoch_check(opt->core.run_dir, opt->core.epoch));
    TSR_TRY(tsr_checkpoint_fence(opt->core.run_dir, opt->core.epoch));
    TSR_TRY(open_core(c, &opt->core));
    TSR_TRY(open_server(c, opt));
    open_metrics(c, opt->metrics_port);
    TSR_TRY(publish_address(c, opt));
    uv_timer_start(&c->timer, on_timer, TICK_MS, TICK_MS);
    uv_check_start(&c->check, on_check);
    return 0;
}

int tsr_coordinator_open(struct tsr_coordinator **out, uv_loop_t *loop,
                         const struct tsr_coordinator_opt *opt) {
    struct tsr_coordinator *c = calloc(1, sizeof *c);
    if (!c)
        return tsr_fail(TSR_ENOMEM, "no memory for the coordinator");
    c->loop = loop;
    c->failed = opt->failed;
    c->arg = opt->arg;
    c->extra.save_seconds = -1;
    TSR_ASSERT(uv_timer_init(loop, &c->timer) == 0 && uv_check_init(loop, &c->check) == 0);
    c->check.data = c;
    int rc = open_all(c, opt);
    if (rc < 0) {
        char text[TSR_ERROR_TEXT];
        snprintf(text, sizeof text, "%s", tsr_error_text());
        tsr_coordinator_close(c);
        return tsr_fail((enum tsr_code)rc, "%s", text);
    }
    *out = c;
    return 0;
}

const struct tsr_address *tsr_coordinator_address(const struct tsr_coordinator *c) {
    return &c->address;
}

bool tsr_coordinator_needed(const struct tsr_coordinator *c) {
    Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
    bool needed = tsr_disk_busy(c->disk);
    if (tsr_coord_over(c->core) || tsr_coord_status(c->core, &s) < 0)
        return needed;
    for (size_t i = 0; i < s.n_ranks; i++)
        needed |= s.ranks[i]->alive;
    tsr_coord_status_free(&s);
    return needed;
}

void tsr_coordinator_close(struct tsr_coordinator *c) {
    if (!c)
        return;
    if (c->disk)
        tsr_disk_stop(c->disk);
    tsr_metrics_http_close(c->metrics);
    tsr_server_close(c->server);
    uv_close((uv_handle_t *)&c->timer, NULL);
    uv_close((uv_handle_t *)&c->check, NULL);
    uv_run(c->loop, UV_RUN_DEFAULT);
    tsr_coord_close(c->core);
    tsr_disk_close(c->disk);
    free(c);
}
