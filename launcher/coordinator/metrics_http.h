// GET /metrics for Prometheus on 127.0.0.1, served from a libuv loop: libmicrohttpd has no thread
// of its own here, its epoll descriptor is one more that the loop watches.
#ifndef TSR_LAUNCHER_COORDINATOR_METRICS_HTTP_H
#define TSR_LAUNCHER_COORDINATOR_METRICS_HTTP_H

#include <uv.h>
#include "core/io.h"
#include "control.pb-c.h"

struct tsr_metrics_http;

// `text` appends the page, asked for at each request; its failure is a 500. Port 0: chosen by the
// kernel. TSR_EIO when the port is taken or sockets are out.
int tsr_metrics_http_open(struct tsr_metrics_http **out, uv_loop_t *loop, int port,
                          int (*text)(void *arg, struct tsr_buf *page), void *arg);
int tsr_metrics_http_port(const struct tsr_metrics_http *h);
// It is freed when the loop has run until all of it is closed. NULL is fine.
void tsr_metrics_http_close(struct tsr_metrics_http *h);

// What the coordinator knows besides its status.
struct tsr_metrics_extra {
    double save_seconds; // the last committed save, from the first snapshot on; negative: none yet
    uint64_t saves, saves_failed; // since the coordinator began
    uint64_t connections_refused;
    int connections;
};

// The page, in Prometheus' text format 0.0.4.
int tsr_metrics_page(struct tsr_buf *page, const Tessera__Control__Status *s,
                     const struct tsr_metrics_extra *extra);

#endif
