// Listens on a loopback port, writes RUN_DIR/coordinator/{key,address} and answers StatusRequest
// from one client after the other: the server end of launcher/control over the plainest sockets,
// for clients written in other languages. Its argument is RUN_DIR; it runs until it is killed.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "launcher/control/session.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

enum { EPOCH = 3 };

struct peer {
    int fd;
    struct tsr_session *session;
};

static int send_frame(struct peer *p, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_buf out = {0};
    int rc = tsr_session_seal(p->session, type, m, &out);
    if (rc == 0)
        rc = tsr_write_all(p->fd, out.data, out.len, "socket");
    tsr_buf_free(&out);
    return rc;
}

static int send_challenge(struct peer *p) {
    Tessera__Control__Challenge m = TESSERA__CONTROL__CHALLENGE__INIT;
    m.version = TSR_PROTOCOL_VERSION;
    m.nonce = (ProtobufCBinaryData){TSR_NONCE, (uint8_t *)(uintptr_t)tsr_session_nonce(p->session)};
    m.epoch = EPOCH;
    return send_frame(p, FRAME(CHALLENGE), &m.base);
}

static int send_status(struct peer *p) {
    Tessera__Control__StepReport last = TESSERA__CONTROL__STEP_REPORT__INIT;
    Tessera__Control__RankStatus ranks[2], *list[] = {&ranks[0], &ranks[1]};
    Tessera__Control__Status m = TESSERA__CONTROL__STATUS__INIT;
    char host[] = "h\xc3\xb6st-1", name[] = "demo";
    last.step = 41;
    last.loss = 2.5;
    for (uint32_t i = 0; i < 2; i++) {
        tessera__control__rank_status__init(&ranks[i]);
        ranks[i].rank = i;
        ranks[i].host = host;
        ranks[i].alive = true;
        ranks[i].phase = TESSERA__CONTROL__PHASE__PHASE_BACKWARD;
    }
    m.epoch = EPOCH;
    m.run_name = name;
    m.has_last = true;
    m.last = &last;
    m.ranks = list;
    m.n_ranks = 2;
    return send_frame(p, FRAME(STATUS), &m.base);
}

static int send_refused(struct peer *p) {
    Tessera__Control__Refused m = TESSERA__CONTROL__REFUSED__INIT;
    char reason[1024];
    tsr_frame_text(reason, sizeof reason, tsr_error_text());
    m.reason = reason;
    return send_frame(p, FRAME(REFUSED), &m.base);
}

static int on_frame(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct peer *p = arg;
    if (type == FRAME(STATUS_REQUEST))
        return send_status(p);
    if (type != FRAME(HELLO))
        return 0;
    const Tessera__Control__Hello *hello = (const void *)m;
    if (hello->epoch != EPOCH)
        return tsr_fail(TSR_EREQUEST, "expected epoch %d, found %llu", EPOCH,
                        (unsigned long long)hello->epoch);
    Tessera__Control__Welcome welcome = TESSERA__CONTROL__WELCOME__INIT;
    welcome.epoch = EPOCH;
    return send_frame(p, FRAME(WELCOME), &welcome.base);
}

static void serve(int fd, const uint8_t *secret) {
    struct tsr_session_opt opt = {.server = true};
    struct peer p = {.fd = fd};
    char bytes[7]; // small: frames come in pieces
    ssize_t n;
    memcpy(opt.secret, secret, TSR_SECRET);
    TSR_ASSERT(tsr_random_bytes(opt.nonce, TSR_NONCE) == 0);
    TSR_ASSERT(tsr_session_open(&p.session, &opt) == 0);
    int rc = send_challenge(&p);
    while (rc == 0 && (n = read(fd, bytes, sizeof bytes)) > 0)
        rc = tsr_session_feed(p.session, bytes, (size_t)n, on_frame, &p);
    if (rc == TSR_EREQUEST && tsr_session_ready(p.session))
        send_refused(&p);
    tsr_session_close(p.session);
    close(fd);
}

static int listen_on_loopback(int *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    TSR_ASSERT(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 8) == 0);
    TSR_ASSERT(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    *port = ntohs(a.sin_port);
    return fd;
}

int main(int argc, char **argv) {
    char path[TSR_PATH_MAX], address[128];
    uint8_t secret[TSR_SECRET];
    int port;
    TSR_ASSERT(argc == 2 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    signal(SIGPIPE, SIG_IGN);
    TSR_ASSERT(tsr_path_join(path, argv[1], "coordinator/key") == 0);
    TSR_ASSERT(tsr_secret_create(path) == 0 && tsr_secret_load(secret, path) == 0);
    int listener = listen_on_loopback(&port);
    int n = snprintf(address, sizeof address,
                     "{\"host\": \"127.0.0.1\", \"port\": %d, \"pid\": %d, \"epoch\": %d}\n", port,
                     (int)getpid(), EPOCH);
    TSR_ASSERT(tsr_path_join(path, argv[1], "coordinator/address") == 0);
    TSR_ASSERT(tsr_write_file_durable(path, address, (size_t)n) == 0);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        TSR_ASSERT(fd >= 0);
        serve(fd, secret);
    }
}
