// The text that Prometheus reads: https://prometheus.io/docs/instrumenting/exposition_formats/
#include <math.h>
#include <stdarg.h>
#include "core/error.h"
#include "launcher/control/registry.h"
#include "launcher/coordinator/metrics_http.h"

// One metric with one sample. The page is written with one check at the end: a buffer that failed
// to grow stays as it was.
struct page {
    struct tsr_buf *b;
    int rc;
};

__attribute__((format(printf, 2, 3))) static void put(struct page *p, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    TSR_ASSERT(n >= 0 && n < (int)sizeof text);
    if (p->rc == 0)
        p->rc = tsr_buf_append(p->b, text, (size_t)n);
}

static void sample(struct page *p, const char *name, const char *type, const char *help, double v) {
    put(p, "# HELP tessera_%s %s\n# TYPE tessera_%s %s\ntessera_%s ", name, help, name, type, name);
    if (isfinite(v))
        put(p, "%.17g\n", v);
    else
        put(p, "%s\n", isnan(v) ? "NaN" : v < 0 ? "-Inf" : "+Inf");
}

static void gauge(struct page *p, const char *name, const char *help, double v) {
    sample(p, name, "gauge", help, v);
}

static void counter(struct page *p, const char *name, const char *help, uint64_t v) {
    sample(p, name, "counter", help, (double)v);
}

// A label's value: backslash, quote and newline are escaped.
static void label(struct page *p, const char *name, const char *value) {
    char text[TSR_PATH_MAX]; // UTF-8, as the format demands
    tsr_frame_text(text, sizeof text, value);
    put(p, "%s=\"", name);
    for (const char *c = text; *c; c++) {
        if (*c == '\n')
            put(p, "\\n");
        else
            put(p, "%s%c", *c == '"' || *c == '\\' ? "\\" : "", *c);
    }
    put(p, "\"");
}

static void put_run(struct page *p, const Tessera__Control__Status *s) {
    put(p, "# HELP tessera_run_info The run and its layout.\n# TYPE tessera_run_info gauge\n"
           "tessera_run_info{");
    label(p, "name", s->run_name);
    put(p, ",");
    label(p, "dir", s->run_dir);
    put(p, ",tp=\"%u\",pp=\"%u\",dp=\"%u\"} 1\n", s->tp, s->pp, s->dp);
    gauge(p, "epoch", "Number of the run's present incarnation.", (double)s->epoch);
    gauge(p, "uptime_seconds", "Age of the coordinator.", s->uptime_s);
    counter(p, "restarts_total", "Incarnations before this one under the same supervisor.",
            s->restarts);
}

static void put_step(struct page *p, const Tessera__Control__Status *s) {
    const Tessera__Control__StepReport *l = s->last;
    gauge(p, "steps_planned", "Steps of the whole run.", (double)s->steps);
    if (!s->has_last || !l)
        return;
    gauge(p, "step", "Steps completed.", (double)l->step);
    gauge(p, "loss", "Training loss of the last step, nats per token.", l->loss);
    if (l->has_valid_loss)
        gauge(p, "validation_loss", "Loss on held-out data at the last evaluation, nats per token.",
              l->valid_loss);
    gauge(p, "gradient_norm", "Norm of the last step's gradients before clipping.", l->grad_norm);
    gauge(p, "learning_rate", "Learning rate of the last step.", l->lr);
    gauge(p, "tokens_per_second", "Tokens trained on per second in the last step.",
          l->tokens_per_s);
    gauge(p, "mfu_ratio", "Share of the measured peak in the last step, 0 to 1.", l->mfu);
    gauge(p, "step_seconds", "Duration of the last step.", l->step_ms / 1e3);
    counter(p, "tokens_total", "Tokens trained on since the run began.", l->tokens);
    counter(p, "skipped_steps_total", "Steps not applied: not finite, or a spike.", l->skipped);
    counter(p, "rollbacks_total", "Returns to a checkpoint after a bad step.", l->rollbacks);
    counter(p, "dropped_sequences_total", "Sequences of the data left out by rollbacks.",
            l->dropped_sequences);
}

static void put_ranks(struct page *p, const Tessera__Control__Status *s) {
    int alive = 0;
    for (size_t i = 0; i < s->n_ranks; i++)
        alive += s->ranks[i]->alive;
    gauge(p, "ranks", "Ranks of the layout.", (double)s->tp * s->pp * s->dp);
    gauge(p, "ranks_alive", "Ranks connected and answering.", alive);
}

static void put_saves(struct page *p, const Tessera__Control__Status *s,
                      const struct tsr_metrics_extra *extra) {
    gauge(p, "committed_step", "Step of the newest checkpoint, 0 when there is none.",
          (double)s->committed_step);
    gauge(p, "save_in_flight", "1 while a checkpoint is being written.",
          s->save && s->save->in_flight);
    if (extra->save_seconds >= 0)
        gauge(p, "save_seconds", "Duration of the last checkpoint, snapshot to commit.",
              extra->save_seconds);
    counter(p, "saves_total", "Checkpoints committed since the coordinator began.", extra->saves);
    counter(p, "saves_failed_total", "Checkpoints given up since the coordinator began.",
            extra->saves_failed);
}

int tsr_metrics_page(struct tsr_buf *page, const Tessera__Control__Status *s,
                     const struct tsr_metrics_extra *extra) {
    struct page p = {page, 0};
    put_run(&p, s);
    put_step(&p, s);
    put_ranks(&p, s);
    put_saves(&p, s, extra);
    gauge(&p, "connections", "Connections to the coordinator.", extra->connections);
    counter(&p, "connections_refused_total",
            "Connections refused: wrong key, garbage, silence, no place.",
            extra->connections_refused);
    return p.rc;
}
