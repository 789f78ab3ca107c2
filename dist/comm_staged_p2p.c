// Messages between two devices over the host's transport. A message to send is copied to the host
// before the call returns; one to receive goes to the device when it is waited for. Part of every
// transport of devices: some have no way of their own between all ranks.
#include <stdlib.h>
#include "core/error.h"
#include "dist/comm_staged.h"

int tsr_staged_from(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    return n_bytes ? ctx->ops->to_host(ctx, dst, src, n_bytes) : 0;
}

int tsr_staged_to(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    return n_bytes ? ctx->ops->to_device(ctx, dst, src, n_bytes) : 0;
}

// A message that isn't under way, with room for n_bytes that the host may write.
static int take_message(struct tsr_ctx *ctx, struct tsr_comm *c, size_t n_bytes,
                        struct tsr_staged_message **out) {
    struct tsr_staged *s = c->device;
    struct tsr_staged_message *m = s->messages;
    while (m && (m->busy || m->read || m->cap < n_bytes))
        m = m->next;
    if (!m) // one whose copy must grow, or that the device may still be reading
        for (m = s->messages; m && m->busy;)
            m = m->next;
    if (!m) {
        m = calloc(1, sizeof *m);
        if (!m)
            return tsr_fail(TSR_ENOMEM, "no memory for a message");
        m->next = s->messages;
        s->messages = m;
    }
    if (m->read) {
        TSR_TRY(ctx->ops->sync(ctx));
        for (struct tsr_staged_message *o = s->messages; o; o = o->next)
            o->read = false;
    }
    if (m->cap < n_bytes) {
        if (m->copy)
            ctx->ops->unpin(ctx, m->copy, m->cap);
        free(m->copy);
        m->cap = 0;
        m->copy = malloc(n_bytes);
        if (!m->copy)
            return tsr_fail(TSR_ENOMEM, "rank %d (host %s): no memory for a message of %zu bytes",
                            c->rank, c->host, n_bytes);
        m->cap = n_bytes;
        TSR_TRY(ctx->ops->pin(ctx, m->copy, n_bytes));
    }
    m->busy = true;
    m->n_bytes = n_bytes;
    *out = m;
    return 0;
}

int tsr_staged_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, const void *buf,
                    size_t n_bytes, int to, int tag, struct tsr_request *r) {
    struct tsr_staged_message *m = NULL;
    TSR_TRY(take_message(ctx, c, n_bytes, &m));
    TSR_TRY(tsr_staged_from(ctx, m->copy, buf, n_bytes));
    TSR_TRY(ctx->ops->sync(ctx));
    m->dst = NULL;
    TSR_TRY(c->control->send(ctx, c, g, m->copy, n_bytes, to, tag, &m->host));
    *r = (struct tsr_request){.impl = {m}, .what = m->host.what, .peer = to};
    return 0;
}

int tsr_staged_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, void *buf,
                    size_t n_bytes, int from, int tag, struct tsr_request *r) {
    struct tsr_staged_message *m = NULL;
    TSR_TRY(take_message(ctx, c, n_bytes, &m));
    m->dst = buf;
    TSR_TRY(c->control->recv(ctx, c, g, m->copy, n_bytes, from, tag, &m->host));
    *r = (struct tsr_request){.impl = {m}, .what = m->host.what, .peer = from};
    return 0;
}

int tsr_staged_wait(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_request *r) {
    struct tsr_staged_message *m = r->impl[0];
    struct tsr_request none = {0};
    TSR_TRY(c->control->wait(ctx, c, m ? &m->host : &none));
    if (!m)
        return 0;
    if (m->dst) {
        TSR_TRY(tsr_staged_to(ctx, m->dst, m->copy, m->n_bytes));
        m->read = m->n_bytes > 0;
    }
    m->busy = false;
    *r = none;
    return 0;
}

void tsr_staged_free_messages(struct tsr_staged *s) {
    while (s->messages) {
        struct tsr_staged_message *m = s->messages;
        s->messages = m->next;
        if (m->copy)
            s->ctx.ops->unpin(&s->ctx, m->copy, m->cap);
        free(m->copy);
        free(m);
    }
}
