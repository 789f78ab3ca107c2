// One question to a coordinator, and its answer.
#include "core/error.h"
#include "launcher/link.h"
#include "launcher/status_view.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

enum { ANSWER_MS = 3000 };

struct question {
    uv_loop_t loop;
    uv_timer_t timer;
    struct tsr_link *link;
    Tessera__Control__Status *answer;
    int code;
    char error[512];
};

static int on_welcome(void *arg, const Tessera__Control__Welcome *w) {
    struct question *q = arg;
    Tessera__Control__StatusRequest r = TESSERA__CONTROL__STATUS_REQUEST__INIT;
    (void)w;
    tsr_link_send(q->link, FRAME(STATUS_REQUEST), &r.base);
    return 0;
}

static int on_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct question *q = arg;
    if (type != FRAME(STATUS) || q->answer)
        return 0; // observers are told of failures too
    q->answer = (Tessera__Control__Status *)tsr_link_copy(m);
    tsr_link_finish(q->link);
    return q->answer ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the status");
}

static void on_ended(void *arg, int code) {
    struct question *q = arg;
    q->link = NULL;
    q->code = code;
    snprintf(q->error, sizeof q->error, "%s", code < 0 ? tsr_error_text() : "it did not answer");
    uv_close((uv_handle_t *)&q->timer, NULL);
}

static void on_timer(uv_timer_t *t) {
    struct question *q = t->data;
    tsr_link_abort(q->link);
}

int tsr_status_ask(const struct tsr_address *at, const uint8_t *secret,
                   Tessera__Control__Status **status) {
    struct question q = {0};
    Tessera__Control__Hello hello = TESSERA__CONTROL__HELLO__INIT;
    hello.role = TESSERA__CONTROL__ROLE__ROLE_OBSERVER;
    const struct tsr_link_opt opt = {.loop = &q.loop,
                                     .secret = secret,
                                     .address = at,
                                     .hello = &hello,
                                     .timeout_s = 0.8 * ANSWER_MS / 1e3,
                                     .welcome = on_welcome,
                                     .message = on_message,
                                     .ended = on_ended,
                                     .arg = &q};
    TSR_ASSERT(uv_loop_init(&q.loop) == 0 && uv_timer_init(&q.loop, &q.timer) == 0);
    q.timer.data = &q;
    uv_timer_start(&q.timer, on_timer, ANSWER_MS, 0);
    int rc = tsr_link_open(&q.link, &opt);
    if (rc < 0)
        on_ended(&q, rc);
    uv_run(&q.loop, UV_RUN_DEFAULT);
    TSR_ASSERT(uv_loop_close(&q.loop) == 0);
    *status = q.answer;
    if (q.answer)
        return 0;
    return tsr_fail(q.code == TSR_EREQUEST ? TSR_EREQUEST : TSR_EPEER, "%s", q.error);
}
