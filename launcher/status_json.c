// `tessera status --json`.
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/progress.h"
#include "launcher/json_out.h"
#include "launcher/status_view.h"

static json_t *whole(uint64_t v) {
    return json_integer((json_int_t)v);
}

// Text of others may be no UTF-8, which jansson refuses.
static json_t *text(const char *s) {
    json_t *v = json_string(s);
    return v ? v : json_string("?");
}

static json_t *rank_of(const Tessera__Control__RankStatus *r) {
    json_t *o = json_object();
    json_object_set_new(o, "rank", whole(r->rank));
    json_object_set_new(o, "host", text(r->host));
    json_object_set_new(o, "pid", whole(r->pid));
    json_object_set_new(o, "alive", json_boolean(r->alive));
    json_object_set_new(o, "step", whole(r->step));
    json_object_set_new(o, "phase", json_string(tsr_phase_word((uint32_t)r->phase)));
    json_object_set_new(o, "micro_batch", whole(r->micro_batch));
    json_object_set_new(o, "collective", whole(r->collective));
    json_object_set_new(o, "silence_s", tsr_json_real(r->silence_s));
    return o;
}

static void put_report(json_t *o, const Tessera__Control__StepReport *r) {
    json_object_set_new(o, "step", whole(r->step));
    json_object_set_new(o, "loss", tsr_json_real(r->loss));
    json_object_set_new(o, "grad_norm", tsr_json_real(r->grad_norm));
    json_object_set_new(o, "lr", tsr_json_real(r->lr));
    json_object_set_new(o, "tokens", whole(r->tokens));
    json_object_set_new(o, "tokens_per_s", tsr_json_real(r->tokens_per_s));
    json_object_set_new(o, "mfu", tsr_json_real(r->mfu));
    json_object_set_new(o, "step_ms", tsr_json_real(r->step_ms));
    json_object_set_new(o, "skipped", whole(r->skipped));
    json_object_set_new(o, "rollbacks", whole(r->rollbacks));
    json_object_set_new(o, "dropped_sequences", whole(r->dropped_sequences));
    if (r->has_valid_loss)
        json_object_set_new(o, "valid_loss", tsr_json_real(r->valid_loss));
}

static void put_live(json_t *o, const Tessera__Control__Status *s) {
    json_t *layout = json_object(), *ranks = json_array(), *save = json_object();
    uint64_t alive = 0;
    json_object_set_new(o, "name", text(s->run_name));
    json_object_set_new(o, "epoch", whole(s->epoch));
    json_object_set_new(o, "restarts", whole(s->restarts));
    json_object_set_new(o, "uptime_s", tsr_json_real(s->uptime_s));
    json_object_set_new(o, "steps", whole(s->steps));
    json_object_set_new(layout, "tp", whole(s->tp));
    json_object_set_new(layout, "pp", whole(s->pp));
    json_object_set_new(layout, "dp", whole(s->dp));
    json_object_set_new(o, "layout", layout);
    for (size_t i = 0; i < s->n_ranks; i++) {
        alive += s->ranks[i]->alive;
        json_array_append_new(ranks, rank_of(s->ranks[i]));
    }
    json_object_set_new(o, "ranks_alive", whole(alive));
    json_object_set_new(o, "ranks", ranks);
    bool in_flight = s->save && s->save->in_flight;
    json_object_set_new(save, "in_flight", json_boolean(in_flight));
    if (in_flight) {
        json_object_set_new(save, "step", whole(s->save->step));
        json_object_set_new(save, "stage", text(s->save->stage));
        json_object_set_new(save, "waiting_for", whole(s->save->waiting_for));
    }
    json_object_set_new(o, "save", save);
}

int tsr_status_json(struct tsr_buf *out, const struct tsr_status_view *v) {
    const Tessera__Control__StepReport *r = tsr_status_report(v);
    double eta = tsr_status_eta_s(v);
    json_t *o = json_object();
    json_object_set_new(o, "run_dir", text(v->run_dir));
    json_object_set_new(o, "running", json_boolean(v->live != NULL));
    json_object_set_new(o, "finished", json_boolean(tsr_status_is_finished(v)));
    if (r)
        put_report(o, r);
    else
        json_object_set_new(o, "step", whole(0));
    json_object_set_new(o, "committed_step",
                        whole(v->live ? v->live->committed_step : (uint64_t)v->committed_step));
    if (v->live)
        put_live(o, v->live);
    else if (!tsr_status_is_finished(v))
        json_object_set_new(o, "reason", text(v->why));
    if (!v->live)
        json_object_set_new(o, "steps", v->steps > 0 ? whole((uint64_t)v->steps) : json_null());
    if (eta >= 0)
        json_object_set_new(o, "eta_s", tsr_json_real(eta));
    char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(o);
    if (!line)
        return tsr_fail(TSR_ENOMEM, "no memory for the status");
    int rc = tsr_buf_printf(out, "%s\n", line);
    free(line);
    return rc;
}
