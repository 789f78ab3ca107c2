// What a rank's agent says.
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "tests/sim/sim.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

// Nothing but Hello before Welcome: what is told out of order would be misunderstood.
void sim_say(struct sim *s, int rank, uint16_t type, const ProtobufCMessage *m) {
    const struct sim_rank *r = &s->ranks[rank];
    if (r->conn >= 0 && (r->welcome || type == FRAME(HELLO)))
        sim_send(s, r->conn, 1, type, m);
}

void sim_say_hello(struct sim *s, int rank) {
    const struct sim_rank *r = &s->ranks[rank];
    const struct sim_epoch *e = &s->epochs[r->epoch];
    Tessera__Control__Hello m = TESSERA__CONTROL__HELLO__INIT;
    m.version = 1;
    m.epoch = (uint64_t)r->epoch;
    m.rank = (uint32_t)r->index;
    m.world = (uint32_t)e->world;
    m.tp = m.pp = 1;
    m.dp = m.world;
    m.host = "sim";
    m.pid = (uint64_t)rank + 1000;
    m.step = e->step;
    m.steps = 1000000;
    sim_say(s, rank, FRAME(HELLO), &m.base);
}

// Two columns, each a part of its own.
void sim_say_map(struct sim *s, int rank) {
    const struct sim_rank *r = &s->ranks[rank];
    const struct sim_epoch *e = &s->epochs[r->epoch];
    for (uint32_t part = 0; part < 2; part++) {
        Tessera__Checkpoint__ShardMap m = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
        Tessera__Checkpoint__TensorShards t = TESSERA__CHECKPOINT__TENSOR_SHARDS__INIT, *tp = &t;
        Tessera__Checkpoint__Region g = TESSERA__CHECKPOINT__REGION__INIT, *gp = &g;
        t.name = "w";
        t.rows = (uint64_t)s->rows;
        t.cols = 2;
        t.frozen = 1;
        g.r0 = (uint64_t)e->from[r->index];
        g.r1 = (uint64_t)e->to[r->index];
        g.c0 = part;
        g.c1 = part + 1;
        t.n_regions = 1;
        t.regions = &gp;
        m.n_tensors = 1;
        m.tensors = &tp;
        m.part = part;
        m.n_parts = 2;
        sim_say(s, rank, FRAME(SHARD_MAP), &m.base);
    }
}

void sim_say_heartbeat(struct sim *s, int rank) {
    const struct sim_rank *r = &s->ranks[rank];
    Tessera__Control__Heartbeat m = TESSERA__CONTROL__HEARTBEAT__INIT;
    m.step = s->epochs[r->epoch].step;
    m.phase = r->holding   ? TESSERA__CONTROL__PHASE__PHASE_CHECKPOINT
              : r->waiting ? TESSERA__CONTROL__PHASE__PHASE_REDUCE
                           : TESSERA__CONTROL__PHASE__PHASE_FORWARD;
    m.collective = r->collective;
    sim_say(s, rank, FRAME(HEARTBEAT), &m.base);
}

void sim_say_plan(struct sim *s, int rank) {
    const struct sim_save *v = &s->ranks[rank].save;
    char temporary[128];
    Tessera__Checkpoint__SavePlan m = TESSERA__CHECKPOINT__SAVE_PLAN__INIT;
    Tessera__Checkpoint__PlannedFile f = TESSERA__CHECKPOINT__PLANNED_FILE__INIT, *fp = &f;
    tsr_save_temporary(temporary, v->step, (uint64_t)s->ranks[rank].epoch, v->attempt);
    f.path = "model.safetensors";
    f.size = (uint64_t)s->rows * ROW_BYTES;
    m.step = v->step;
    m.attempt = v->attempt;
    m.temporary = temporary;
    m.range_bytes = RANGE_BYTES;
    m.n_files = 1;
    m.files = &fp;
    m.elements = 2 * (uint64_t)s->rows;
    sim_say(s, rank, FRAME(SAVE_PLAN), &m.base);
}

void sim_say_ready(struct sim *s, int rank) {
    const struct sim_save *v = &s->ranks[rank].save;
    Tessera__Checkpoint__SaveReady m = TESSERA__CHECKPOINT__SAVE_READY__INIT;
    m.step = v->step;
    m.attempt = v->attempt;
    sim_say(s, rank, FRAME(SAVE_READY), &m.base);
}

bool sim_wrote_alone(struct sim *s, int rank, int range) {
    const struct sim_rank *r = &s->ranks[rank];
    const struct sim_epoch *e = &s->epochs[r->epoch];
    int first = range * ROWS_PER_RANGE, end = first + ROWS_PER_RANGE;
    if (end > s->rows)
        end = s->rows;
    return first < s->rows && e->from[r->index] <= first && end <= e->to[r->index];
}

void sim_say_vote(struct sim *s, int rank, uint64_t step, uint32_t attempt, bool ok) {
    struct sim_rank *r = &s->ranks[rank];
    const struct sim_epoch *e = &s->epochs[r->epoch];
    Tessera__Checkpoint__SaveVote m = TESSERA__CHECKPOINT__SAVE_VOTE__INIT;
    Tessera__Checkpoint__RangeDigests d[MAX_DIGESTS], *list[MAX_DIGESTS];
    m.step = step;
    m.attempt = attempt;
    m.ok = ok;
    m.error = ok ? "" : "no space left on the device";
    m.exit_code = ok ? 0 : 3;
    int rows = e->to[r->index] - e->from[r->index];
    if (e->fault == MAP_LAZY && e->odd == r->index)
        rows--;
    m.elements = 2 * (uint64_t)rows;
    for (int i = 0; ok && i < MAX_DIGESTS; i++) {
        bool told = (s->seed + (uint64_t)i + attempt) % 3 != 0; // a rank may leave some out
        if (!told || !sim_wrote_alone(s, rank, i))
            continue;
        tessera__checkpoint__range_digests__init(&d[i]);
        d[i].first = (uint64_t)i;
        d[i].digests.data = r->save.vote[i].b;
        d[i].digests.len = sizeof r->save.vote[i].b;
        list[m.n_ranges++] = &d[i];
    }
    m.ranges = list;
    sim_say(s, rank, FRAME(SAVE_VOTE), &m.base);
}

void sim_say_digests(struct sim *s, int rank) {
    struct sim_save *v = &s->ranks[rank].save;
    Tessera__Checkpoint__SaveDigests m = TESSERA__CHECKPOINT__SAVE_DIGESTS__INIT;
    Tessera__Checkpoint__RangeDigests d[MAX_DIGESTS], *list[MAX_DIGESTS];
    m.step = v->step;
    m.attempt = v->attempt;
    m.ok = v->digest_ok;
    m.exit_code = v->digest_ok ? 0 : 3;
    for (size_t i = 0; v->digest_ok && i < v->n_spans; i++) {
        tessera__checkpoint__range_digests__init(&d[i]);
        d[i].first = v->spans[i].first;
        d[i].digests.data = v->answer[v->spans[i].first].b;
        d[i].digests.len = v->spans[i].count * sizeof v->answer[0].b;
        list[m.n_ranges++] = &d[i];
    }
    m.ranges = list;
    sim_say(s, rank, FRAME(SAVE_DIGESTS), &m.base);
}

void sim_say_outcome(struct sim *s, int rank) {
    struct tsr_outcome *o = &s->ranks[rank].last;
    Tessera__Checkpoint__SaveDone done = TESSERA__CHECKPOINT__SAVE_DONE__INIT;
    Tessera__Checkpoint__SaveAbort abort = TESSERA__CHECKPOINT__SAVE_ABORT__INIT;
    if (o->attempt == 0)
        return;
    done.step = abort.step = o->step;
    done.attempt = abort.attempt = o->attempt;
    done.directory = abort.reason = o->text;
    abort.exit_code = o->exit_code;
    sim_say(s, rank, o->committed ? FRAME(SAVE_DONE) : FRAME(SAVE_ABORT),
            o->committed ? &done.base : &abort.base);
}
