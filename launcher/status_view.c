#include "launcher/status_view.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include "core/error.h"
#include "core/progress.h"

enum { BAR_CELLS = 30 };

struct style {
    const char *bold, *dim, *good, *warn, *bad, *off;
};
static const struct style PLAIN = {"", "", "", "", "", ""};
static const struct style COLOUR = {"\033[1m",  "\033[2m",  "\033[32m",
                                    "\033[33m", "\033[31m", "\033[0m"};

const Tessera__Control__StepReport *tsr_status_report(const struct tsr_status_view *v) {
    if (v->live && v->live->has_last && v->live->last)
        return v->live->last;
    return v->has_metrics ? &v->metrics : NULL;
}

bool tsr_status_is_finished(const struct tsr_status_view *v) {
    return !v->live && v->steps > 0 && v->has_metrics && v->metrics.step >= (uint64_t)v->steps &&
           v->committed_step >= v->steps;
}

double tsr_status_eta_s(const struct tsr_status_view *v) {
    const Tessera__Control__StepReport *r = tsr_status_report(v);
    if (!v->live || !r || v->live->steps < r->step || !(r->step_ms >= 0))
        return -1;
    return (double)(v->live->steps - r->step) * r->step_ms / 1e3;
}

// Text of others on a terminal: no control characters.
static void clean(char out[static 64], const char *s) {
    snprintf(out, 64, "%s", s);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F)
            *c = '?';
}

static void duration(char out[static 32], double s) {
    int64_t t = s < 0 || !(s < 1e9) ? -1 : (int64_t)(s + 0.5);
    if (t < 0)
        snprintf(out, 32, "?");
    else if (t >= 86400)
        snprintf(out, 32, "%" PRId64 "d %02d:%02d:%02d", t / 86400, (int)(t / 3600 % 24),
                 (int)(t / 60 % 60), (int)(t % 60));
    else
        snprintf(out, 32, "%d:%02d:%02d", (int)(t / 3600), (int)(t / 60 % 60), (int)(t % 60));
}

static int put_head(struct tsr_buf *b, const struct tsr_status_view *v, const struct style *c) {
    char name[64], dir[64], age[32];
    const Tessera__Control__Status *s = v->live;
    clean(dir, v->run_dir);
    if (tsr_status_is_finished(v))
        return tsr_buf_printf(b, "%s%s%s  %sfinished%s\n", c->bold, v->run_dir, c->off, c->good,
                              c->off);
    if (!s)
        return tsr_buf_printf(b, "%s%s%s  %snot running%s: %s\n", c->bold, v->run_dir, c->off,
                              c->warn, c->off, v->why);
    clean(name, s->run_name);
    duration(age, s->uptime_s);
    return tsr_buf_printf(
        b, "%s%s%s  %srunning%s for %s, incarnation %" PRIu64 ", %" PRIu64 " restart%s\n", c->bold,
        name, c->off, c->good, c->off, age, s->epoch, s->restarts, s->restarts == 1 ? "" : "s");
}

static int put_progress(struct tsr_buf *b, const struct tsr_status_view *v, bool terminal) {
    const Tessera__Control__StepReport *r = tsr_status_report(v);
    uint64_t step = r ? r->step : 0, steps = v->live ? v->live->steps : 0;
    char left[32], bar[BAR_CELLS + 4] = "";
    if (!v->live && !r)
        return tsr_buf_printf(b, "step    none was completed\n");
    if (!v->live && v->steps > 0)
        return tsr_buf_printf(b, "step    %" PRIu64 " of %" PRId64 "%s\n", step, v->steps,
                              tsr_status_is_finished(v) ? "" : " was the last");
    if (!v->live)
        return tsr_buf_printf(b, "step    %" PRIu64 " was the last\n", step);
    if (steps == 0)
        return tsr_buf_printf(b, "step    %" PRIu64 ", no rank has come yet\n", step);
    double part = (double)step / (double)steps;
    part = part < 1 ? part : 1;
    duration(left, tsr_status_eta_s(v));
    if (terminal) {
        int full = (int)(part * BAR_CELLS);
        bar[0] = '[';
        memset(bar + 1, ' ', BAR_CELLS);
        memset(bar + 1, '=', (size_t)full);
        memcpy(bar + 1 + BAR_CELLS, "]  ", 3);
    }
    return tsr_buf_printf(b, "step    %" PRIu64 " of %" PRIu64 "  %.*s%.1f %%  ETA %s\n", step,
                          steps, terminal ? BAR_CELLS + 4 : 0, bar, 100 * part, left);
}

static int put_report(struct tsr_buf *b, const struct tsr_status_view *v) {
    const Tessera__Control__StepReport *r = tsr_status_report(v);
    if (!r)
        return 0;
    TSR_TRY(tsr_buf_printf(b, "loss    %.4f", r->loss));
    if (r->has_valid_loss)
        TSR_TRY(tsr_buf_printf(b, "  validation %.4f", r->valid_loss));
    TSR_TRY(tsr_buf_printf(b, "  gradient norm %.4g  learning rate %.4g\n", r->grad_norm, r->lr));
    TSR_TRY(tsr_buf_printf(b, "speed   %.0f tokens/s  %.1f ms a step  MFU %.1f %%\n",
                           r->tokens_per_s, r->step_ms, 100 * r->mfu));
    if (r->skipped > 0)
        TSR_TRY(tsr_buf_printf(b, "skipped %" PRIu64 " step%s, not finite or a spike\n", r->skipped,
                               r->skipped == 1 ? "" : "s"));
    if (r->rollbacks > 0)
        TSR_TRY(tsr_buf_printf(
            b, "rolled  back %" PRIu64 " time%s, %" PRIu64 " sequences of the data left out\n",
            r->rollbacks, r->rollbacks == 1 ? "" : "s", r->dropped_sequences));
    return 0;
}

static int put_saves(struct tsr_buf *b, const struct tsr_status_view *v, const struct style *c) {
    const Tessera__Control__SaveStatus *w = v->live ? v->live->save : NULL;
    uint64_t committed = v->live ? v->live->committed_step : (uint64_t)v->committed_step;
    TSR_TRY(committed ? tsr_buf_printf(b, "saved   step %" PRIu64, committed)
                      : tsr_buf_printf(b, "saved   no checkpoint yet"));
    if (w && w->in_flight)
        TSR_TRY(tsr_buf_printf(
            b, "  %sstep %" PRIu64 " in flight%s (%s, waiting for %" PRIu32 " rank%s)", c->warn,
            w->step, c->off, w->stage, w->waiting_for, w->waiting_for == 1 ? "" : "s"));
    return tsr_buf_printf(b, "\n");
}

static int put_rank(struct tsr_buf *b, const Tessera__Control__RankStatus *r,
                    const struct style *c) {
    char host[64];
    bool late = r->alive && r->silence_s > 1.0;
    clean(host, r->host);
    return tsr_buf_printf(b,
                          "%4" PRIu32 "  %-16s %8" PRIu64 "  %s%-6s%s %8" PRIu64
                          "  %-10s %11" PRIu32 " %11" PRIu64 " %s%6.1f s%s\n",
                          r->rank, host, r->pid, r->alive ? c->good : c->bad,
                          r->alive ? "alive" : "gone", c->off, r->step,
                          tsr_phase_word((uint32_t)r->phase), r->micro_batch, r->collective,
                          late ? c->warn : "", r->silence_s, late ? c->off : "");
}

static int put_ranks(struct tsr_buf *b, const Tessera__Control__Status *s, const struct style *c) {
    TSR_TRY(tsr_buf_printf(b, "ranks   tp %" PRIu32 " x pp %" PRIu32 " x dp %" PRIu32 "\n\n", s->tp,
                           s->pp, s->dp));
    TSR_TRY(tsr_buf_printf(b, "%s%4s  %-16s %8s  %-6s %8s  %-10s %11s %11s %8s%s\n", c->dim, "rank",
                           "host", "process", "state", "step", "phase", "micro-batch", "collective",
                           "silent", c->off));
    for (size_t i = 0; i < s->n_ranks; i++)
        TSR_TRY(put_rank(b, s->ranks[i], c));
    uint64_t world = (uint64_t)s->tp * s->pp * s->dp;
    if (s->n_ranks < world)
        TSR_TRY(tsr_buf_printf(b, "and %" PRIu64 " more\n", world - s->n_ranks));
    return 0;
}

int tsr_status_text(struct tsr_buf *out, const struct tsr_status_view *v, bool terminal) {
    const struct style *c = terminal ? &COLOUR : &PLAIN;
    TSR_TRY(put_head(out, v, c));
    TSR_TRY(put_progress(out, v, terminal));
    TSR_TRY(put_report(out, v));
    TSR_TRY(put_saves(out, v, c));
    return v->live && v->live->n_ranks > 0 ? put_ranks(out, v->live, c) : 0;
}
