// Connections: what one side sends arrives in order or not at all; different connections know
// nothing of each other. Side 0 is the rank's, side 1 the coordinator's.
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "launcher/control/registry.h"
#include "tests/sim/sim.h"

int sim_connect(struct sim *s, int rank, int proc) {
    TSR_ASSERT(s->n_conns < MAX_CONNS);
    s->conns[s->n_conns] = (struct sim_conn){
        .rank = rank, .proc = proc, .open = {true, true}, .last = {s->now, s->now}};
    return s->n_conns++;
}

// When something sent now arrives: after what was sent before it, and not through a partition.
static double arrival(struct sim *s, struct sim_conn *c, int to_side) {
    double at = s->now + sim_uniform(s, 0.0005, s->delay);
    double until = s->ranks[c->rank].partition_until;
    if (at < until)
        at = until + sim_uniform(s, 0, 0.2);
    if (at <= c->last[to_side])
        at = c->last[to_side] + 1e-6;
    c->last[to_side] = at;
    return at;
}

void sim_send(struct sim *s, int conn, int to_side, uint16_t type, const ProtobufCMessage *m) {
    struct sim_conn *c = &s->conns[conn];
    struct sim_event e = {.kind = EV_DELIVER, .a = conn, .b = to_side, .type = type};
    e.n_bytes = protobuf_c_message_get_packed_size(m);
    e.data = malloc(e.n_bytes + 1);
    TSR_ASSERT(e.data);
    protobuf_c_message_pack(m, e.data);
    e.at = arrival(s, c, to_side);
    if (type != TESSERA__CONTROL__FRAME_TYPE__FRAME_HEARTBEAT &&
        type != TESSERA__CONTROL__FRAME_TYPE__FRAME_PULSE)
        sim_trace(s, "epoch %d: rank %d %s %s, there at %.3f", s->ranks[c->rank].epoch,
                  s->ranks[c->rank].index, to_side ? "says" : "is told", tsr_frame_name(type),
                  e.at);
    sim_push(s, &e);
}

static void tell_closed(struct sim *s, int conn, int side) {
    struct sim_event e = {.kind = EV_CLOSE, .a = conn, .b = side};
    e.at = arrival(s, &s->conns[conn], side);
    sim_push(s, &e);
}

void sim_close(struct sim *s, int conn, int by_side) {
    struct sim_conn *c = &s->conns[conn];
    if (!c->open[by_side])
        return;
    c->open[by_side] = false;
    tell_closed(s, conn, !by_side);
}

void sim_cut(struct sim *s, int conn) {
    struct sim_conn *c = &s->conns[conn];
    for (int side = 0; side < 2; side++) {
        c->open[side] = false;
        c->last[side] = s->now;
        tell_closed(s, conn, side);
    }
}

static bool dead(struct sim *s, const struct sim_conn *c, int side) {
    if (side == 1)
        return !s->procs[c->proc].alive;
    return !s->ranks[c->rank].alive || s->ranks[c->rank].stopped;
}

// What comes to a process that stands still is read when it goes on.
static bool later(struct sim *s, const struct sim_event *e) {
    const struct sim_proc *p = &s->procs[s->conns[e->a].proc];
    if (e->b == 0 || !p->alive || s->now >= p->paused_until)
        return false;
    struct sim_event again = *e;
    again.at = p->paused_until;
    if (e->data) {
        again.data = malloc(e->n_bytes + 1);
        TSR_ASSERT(again.data);
        memcpy(again.data, e->data, e->n_bytes);
    }
    sim_push(s, &again);
    return true;
}

void sim_deliver(struct sim *s, const struct sim_event *e) {
    struct sim_conn *c = &s->conns[e->a];
    if (!c->open[e->b] || dead(s, c, e->b) || later(s, e))
        return;
    const ProtobufCMessageDescriptor *d = tsr_frame_descriptor(e->type);
    TSR_ASSERT(d);
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, e->n_bytes, e->data);
    TSR_ASSERT(m);
    if (e->b == 0)
        sim_rank_message(s, c->rank, e->type, m);
    else if (sim_proc_message(s, e->a, e->type, m) < 0)
        sim_close(s, e->a, 1);
    protobuf_c_message_free_unpacked(m, NULL);
}

void sim_closed(struct sim *s, const struct sim_event *e) {
    struct sim_conn *c = &s->conns[e->a];
    if (later(s, e))
        return;
    c->open[e->b] = false;
    if (dead(s, c, e->b))
        return;
    if (e->b == 0) {
        if (s->ranks[c->rank].conn == e->a)
            sim_rank_lost(s, c->rank);
        return;
    }
    struct sim_proc *p = &s->procs[c->proc];
    for (int i = 0; i < (int)(sizeof p->slots / sizeof *p->slots); i++)
        if (p->slots[i] == c) {
            p->slots[i] = NULL;
            tsr_coord_closed(p->core, i);
        }
}
