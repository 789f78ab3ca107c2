#include "launcher/coordinator/metrics_http.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { MAX_CONNECTIONS = 64, TIMEOUT_S = 10, MEMORY_EACH = 16 << 10, BACKLOG = 64 };

struct tsr_metrics_http {
    struct MHD_Daemon *daemon;
    uv_poll_t poll;
    uv_timer_t timer;
    uv_prepare_t prepare;
    int n_handles; // not closed yet
    int port;
    int (*text)(void *arg, struct tsr_buf *page);
    void *arg;
};

static void on_poll(uv_poll_t *p, int status, int events) {
    const struct tsr_metrics_http *h = p->data;
    (void)status;
    (void)events;
    MHD_run(h->daemon);
}

static void on_timer(uv_timer_t *t) {
    const struct tsr_metrics_http *h = t->data;
    MHD_run(h->daemon);
}

// Before the loop sleeps: when will libmicrohttpd want to look at its timeouts?
static void on_prepare(uv_prepare_t *p) {
    struct tsr_metrics_http *h = p->data;
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(h->daemon, &ms) == MHD_YES)
        uv_timer_start(&h->timer, on_timer, ms, 0);
    else
        uv_timer_stop(&h->timer);
}

static enum MHD_Result answer(struct MHD_Connection *c, unsigned code, const char *type,
                              const char *body, size_t n) {
    struct MHD_Response *r =
        MHD_create_response_from_buffer(n, (void *)body, MHD_RESPMEM_MUST_COPY);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (code == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result rc = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result plain(struct MHD_Connection *c, unsigned code, const char *text) {
    return answer(c, code, "text/plain; charset=utf-8", text, strlen(text));
}

// The first call of a request has its headers only; a body isn't read but refused with them.
static enum MHD_Result on_request(void *arg, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *body,
                                  size_t *n_body, void **request) {
    const struct tsr_metrics_http *h = arg;
    (void)version;
    (void)body;
    (void)n_body;
    (void)request;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return plain(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    if (strcmp(url, "/metrics") != 0)
        return plain(c, MHD_HTTP_NOT_FOUND, "the metrics are at /metrics\n");
    struct tsr_buf page = {0};
    enum MHD_Result rc = h->text(h->arg, &page) == 0
                             ? answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8",
                                      page.data, page.len)
                             : plain(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    tsr_buf_free(&page);
    return rc;
}

static void on_closed(uv_handle_t *handle) {
    struct tsr_metrics_http *h = handle->data;
    if (--h->n_handles > 0)
        return;
    MHD_stop_daemon(h->daemon); // after the loop has let go of its descriptor
    free(h);
}

static int start(struct tsr_metrics_http *h, int port) {
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    h->daemon = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, on_request, h, MHD_OPTION_SOCK_ADDR,
                                 &at, MHD_OPTION_CONNECTION_LIMIT, (unsigned)MAX_CONNECTIONS,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MEMORY_EACH,
                                 MHD_OPTION_LISTEN_BACKLOG_SIZE, (unsigned)BACKLOG, MHD_OPTION_END);
    const union MHD_DaemonInfo *info =
        h->daemon ? MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_BIND_PORT) : NULL;
    if (!info)
        return tsr_fail(TSR_EIO, "cannot serve metrics on 127.0.0.1:%d: is the port taken?", port);
    h->port = info->port;
    return 0;
}

int tsr_metrics_http_open(struct tsr_metrics_http **out, uv_loop_t *loop, int port,
                          int (*text)(void *arg, struct tsr_buf *page), void *arg) {
    struct tsr_metrics_http *h = calloc(1, sizeof *h);
    if (!h)
        return tsr_fail(TSR_ENOMEM, "no memory to serve metrics");
    h->text = text;
    h->arg = arg;
    int rc = start(h, port);
    const union MHD_DaemonInfo *info =
        rc == 0 ? MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    if (rc == 0 && (!info || uv_poll_init(loop, &h->poll, info->epoll_fd) < 0))
        rc = tsr_fail(TSR_EIO, "cannot serve metrics on 127.0.0.1:%d", port);
    if (rc < 0) {
        if (h->daemon)
            MHD_stop_daemon(h->daemon);
        free(h);
        return rc;
    }
    uv_timer_init(loop, &h->timer);
    uv_prepare_init(loop, &h->prepare);
    h->n_handles = 3;
    h->poll.data = h->timer.data = h->prepare.data = h;
    uv_poll_start(&h->poll, UV_READABLE, on_poll);
    uv_prepare_start(&h->prepare, on_prepare);
    *out = h;
    return 0;
}

int tsr_metrics_http_port(const struct tsr_metrics_http *h) {
    return h->port;
}

void tsr_metrics_http_close(struct tsr_metrics_http *h) {
    if (!h)
        return;
    uv_close((uv_handle_t *)&h->poll, on_closed);
    uv_close((uv_handle_t *)&h->timer, on_closed);
    uv_close((uv_handle_t *)&h->prepare, on_closed);
}
