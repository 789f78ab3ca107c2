// The one training loop: what a rank of `tessera train` does.
#include "launcher/training.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "launcher/plan_job.h"
#include "launcher/training_private.h"

enum { EVAL_TOKENS = 1 << 17 };

static struct tsr_progress *_Atomic signalled; // the handler's only way to the job
static volatile sig_atomic_t asked_to_stop;

static void on_signal(int sig) {
    (void)sig;
    asked_to_stop = 1;
    if (signalled)
        signalled->stop = 1;
}

// From the very start: mpirun forwards a SIGUSR1, and Slurm sends its warning, also to ranks that
// still read a checkpoint. They make one step and save it.
static void catch_signals(void) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    asked_to_stop = 0;
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGUSR1, &a, NULL);
}

static int open_job(struct tsr_job *j, const char *command) {
    TSR_TRY(tsr_job_open(j, command));
    signalled = &j->progress;
    if (asked_to_stop)
        j->progress.stop = 1;
    return 0;
}

static int sequence_of(void *dataset, uint64_t g, int32_t *tokens, uint8_t *doc_start) {
    return tsr_dataset_sequence(dataset, g, tokens, doc_start);
}

// Sum over ranks of the measured peak: what `mfu` is a share of.
static int measure_peak(struct tsr_training *tr) {
    struct tsr_leaves l = {0};
    double *all = NULL;
    TSR_TRY(tsr_leaves_push(&l, tr->job.comm.rank,
                            tr->job.ctx.ops->measure_peak(&tr->job.ctx, TSR_PEAK_QUICK) * 1e9));
    TSR_TRY(tsr_leaves_gather(&tr->job.ctx, &tr->job.comm, &l, tr->job.comm.world, &all));
    for (int r = 0; r < tr->job.comm.world; r++)
        tr->peak_flops += all[r];
    free(all);
    return 0;
}

static int write_config(const struct tsr_run *r) {
    char path[TSR_PATH_MAX];
    struct tsr_buf yaml = {0};
    TSR_TRY(tsr_path_join(path, r->run.dir, "config.yaml"));
    int rc = tsr_run_dump(r, &yaml);
    if (rc == 0)
        rc = tsr_write_file_durable(path, yaml.data, yaml.len);
    tsr_buf_free(&yaml);
    return rc;
}

// The loss on held-out data, at most EVAL_TOKENS of it; negative when it isn't due.
static int evaluate(struct tsr_training *tr, double *loss) {
    const struct tsr_run *r = &tr->job.run;
    struct tsr_trainer *t = &tr->trainer;
    *loss = -1.0;
    bool due = r->train.eval_every > 0 &&
               (t->step % r->train.eval_every == 0 || t->step == r->train.steps);
    if (!due || !tr->job.valid)
        return 0;
    int64_t n = tsr_dataset_n_sequences(tr->job.valid), most = EVAL_TOKENS / r->data.seq_len;
    most = most < 1 ? 1 : most;
    return tsr_trainer_eval(t, sequence_of, tr->job.valid, n < most ? n : most, loss);
}

// For whoever watches the run from outside.
static void tell(struct tsr_training *tr, const struct tsr_metrics_line *l) {
    Tessera__Control__StepReport r = TESSERA__CONTROL__STEP_REPORT__INIT;
    r.step = (uint64_t)l->step;
    r.loss = l->loss;
    r.grad_norm = l->grad_norm;
    r.lr = l->lr;
    r.tokens_per_s = l->tokens_per_s;
    r.step_ms = l->step_ms;
    r.skipped = (uint64_t)l->skipped;
    r.rollbacks = (uint64_t)l->rollbacks;
    r.dropped_sequences = (uint64_t)l->dropped;
    r.has_valid_loss = tr->has_valid_loss;
    r.valid_loss = tr->valid_loss;
    r.mfu = l->mfu;
    r.tokens = (uint64_t)l->tokens;
    tsr_agent_step(tr->attachment.agent, &r);
}

static int report(struct tsr_training *tr, const struct tsr_step_result *s, double seconds,
                  double valid_loss) {
    const struct tsr_trainer *t = &tr->trainer;
    if (!tsr_is_rank0(tr))
        return 0;
    int64_t batch = tr->job.run.train.global_batch;
    double tokens = (double)(batch * tr->job.run.data.seq_len);
    double rate = tokens / seconds;
    struct tsr_metrics_line l = {.step = t->step,
                                 .tokens = (int64_t)tokens * t->step,
                                 .loss = s->loss,
                                 .grad_norm = s->grad_norm,
                                 .lr = s->lr,
                                 .tokens_per_s = rate,
                                 .mfu = rate * tsr_flops_per_token(t->m, tr->job.run.data.seq_len) /
                                        tr->peak_flops,
                                 .step_ms = seconds * 1e3,
                                 .skipped = t->skipped,
                                 .rollbacks = t->guard.rollbacks,
                                 .dropped = t->sequences - t->step * batch,
                                 .valid_loss = valid_loss};
    if (valid_loss >= 0.0) {
        tr->valid_loss = valid_loss;
        tr->has_valid_loss = true;
    }
    TSR_TRY(tsr_metrics_write(&tr->metrics, &l));
    tell(tr, &l);
    char extra[128];
    snprintf(extra, sizeof extra, "loss %.4f  %.0f tokens/s", s->loss, rate);
    tsr_bar_update(&tr->bar, (uint64_t)t->step, extra);
    if (valid_loss >= 0.0)
        tsr_info("step %lld: training loss %.4f, validation loss %.4f", (long long)t->step, s->loss,
                 valid_loss);
    if (s->judged.kind != TSR_STEP_GOOD) {
        char what[TSR_GUARD_TEXT];
        tsr_guard_describe(what, &s->judged, t->step);
        tsr_warn("%s: skipped, %lld in a row", what, (long long)t->guard.skips);
    }
    return 0;
}

// After a step: its numbers, a save that has failed meanwhile, a checkpoint when it is due.
static int after_step(struct tsr_training *tr, const struct tsr_step_result *s, double seconds,
                      double valid_loss) {
    const struct tsr_run *r = &tr->job.run;
    int64_t step = tr->trainer.step;
    int rc = report(tr, s, seconds, valid_loss);
    TSR_TRY(tsr_agree(&tr->job.ctx, &tr->job.comm, rc == 0 ? tsr_saver_poll(tr->saver) : rc));
    bool last = s->stop || step == r->train.steps;
    bool due = r->checkpoint.every > 0 && step % r->checkpoint.every == 0;
    if (!last && !due)
        return 0;
    rc =
        tsr_training_save(tr, due ? TSR_SAVE_ANCHOR : TSR_SAVE_PLAIN, last || !r->checkpoint.async);
    return tsr_agree(&tr->job.ctx, &tr->job.comm, rc);
}

static int loop(struct tsr_training *tr) {
    const struct tsr_run *r = &tr->job.run;
    struct tsr_trainer *t = &tr->trainer;
    while (t->step < r->train.steps) {
        struct tsr_step_result s = {0};
        double begin = tsr_now(), valid_loss;
        TSR_TRY(tsr_trainer_step(t, &s));
        double seconds = tsr_now() - begin;
        if (tsr_step_stands(&s)) {
            TSR_TRY(evaluate(tr, &valid_loss));
            TSR_TRY(after_step(tr, &s, seconds, valid_loss));
        } else {
            TSR_TRY(tsr_training_bad_step(tr, &s));
        }
        if (s.stop && t->step < r->train.steps)
            return tsr_fail(TSR_EINTERRUPTED, "interrupted after step %lld", (long long)t->step);
    }
    return 0;
}

// Rank 0 writes the resolved run file and opens the metrics: only now is it known that this run may
// go on in its directory.
static int open_reports(struct tsr_training *tr) {
    const struct tsr_job *j = &tr->job;
    if (!tsr_is_rank0(tr))
        return 0;
    TSR_TRY(write_config(&j->run));
    TSR_TRY(tsr_metrics_open(&tr->metrics, j->run.run.dir, tr->trainer.step));
    tsr_info("%s: %.1f M parameters, %d x %d x %d ranks (tp, pp, dp), %s", j->run.run.name,
             (double)tsr_model_n_params(&j->model) * 1e-6, j->mesh.tp, j->mesh.pp, j->mesh.dp,
             j->ctx.ops->describe(&j->ctx));
    tsr_bar_begin(&tr->bar, "train", "steps", (uint64_t)tr->trainer.step,
                  (uint64_t)j->run.train.steps);
    return 0;
}

// Joins the coordinator first, so that a rank that hangs in what follows is seen.
static int prepare(struct tsr_training *tr) {
    struct tsr_job *j = &tr->job;
    TSR_TRY(tsr_attach(&tr->attachment, j));
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, tsr_log_open(j->run.run.dir)));
    TSR_TRY(tsr_job_load_data(j));
    TSR_TRY(tsr_trainer_open(&tr->trainer, &j->run, &j->model, &j->ctx, &j->comm, &j->mesh,
                             sequence_of, j->train));
    TSR_TRY(tsr_training_load(tr));
    struct tsr_saver_opt saver = {.net = &tr->trainer.net,
                                  .agent = tr->attachment.agent,
                                  .run_dir = j->run.run.dir,
                                  .source_dir = j->run.model.from,
                                  .tokenizer_dir = j->tokenizer ? j->tokenizer_dir : NULL,
                                  .epoch = tr->attachment.epoch,
                                  .direct = !j->run.checkpoint.async};
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, tsr_saver_open(&tr->saver, &saver)));
    TSR_TRY(measure_peak(tr));
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, open_reports(tr)));
    return tsr_training_anchor(tr);
}

static int run(struct tsr_training *tr, const char *path, const char *const *overrides, int n) {
    struct tsr_job *j = &tr->job;
    TSR_TRY(tsr_job_load_run(j, path, overrides, n));
    TSR_TRY(tsr_job_device(j));
    TSR_TRY(tsr_plan_refuse(j));
    TSR_TRY(prepare(tr));
    int rc = loop(tr);
    if (rc == 0)
        j->progress.phase = TSR_PHASE_DONE;
    if (tsr_is_rank0(tr)) {
        if (rc == 0)
            tsr_bar_end(&tr->bar);
        else
            tsr_bar_stop(&tr->bar);
        if (rc == TSR_EINTERRUPTED)
            tsr_info("%s; the checkpoint is written, the same command continues", tsr_error_text());
    }
    return rc;
}

int tsr_train_rank(const char *command, const char *path, const char *const *overrides, int n) {
    struct tsr_training tr = {0};
    catch_signals();
    int rc = open_job(&tr.job, command);
    if (rc == 0)
        rc = run(&tr, path, overrides, n);
    signalled = NULL;
    tsr_metrics_close(&tr.metrics);
    tsr_job_settle(&tr.job, rc);
    tsr_saver_close(tr.saver);
    tsr_detach(&tr.attachment, &tr.job, tsr_exit_code(rc));
    tsr_trainer_close(&tr.trainer);
    return tsr_job_close(&tr.job, rc);
}
