#include "launcher/job.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "dist/net.h"
#include "launcher/options.h"

int tsr_job_open(struct tsr_job *j, const char *command) {
    memset(j, 0, sizeof *j);
    j->command = command;
    tsr_device_environment();
    if (tsr_comm_under_mpi())
        TSR_TRY(tsr_comm_open_mpi(&j->comm, NULL, NULL, &j->progress));
    else
        TSR_TRY(tsr_comm_open_single(&j->comm, &j->progress));
    j->comm_open = true;
    tsr_log_identity(j->comm.rank, j->comm.world, j->comm.host);
    return 0;
}

int tsr_job_device(struct tsr_job *j) {
    struct tsr_device_want want = tsr_device_of_run(&j->run);
    TSR_TRY(tsr_device_open(&j->device, &j->ctx, &j->comm, &want));
    return tsr_agree(&j->ctx, &j->comm, tsr_net_check_device(&j->ctx, &j->model));
}

int tsr_job_load_model(struct tsr_model *m, const struct tsr_run *r) {
    if (r->model.from)
        return tsr_model_load(m, r->model.from);
    if (!r->model.preset)
        return tsr_model_parse(m, r->model.config, "model.config");
    const char *json = tsr_preset_json(r->model.preset);
    if (!json)
        return tsr_fail(TSR_ECONFIG, "model.preset: there is no preset \"%s\"", r->model.preset);
    return tsr_model_parse(m, json, r->model.preset);
}

static int load_run(struct tsr_job *j, const char *path, const char *const *overrides, int n) {
    TSR_TRY(tsr_run_load(&j->run, path, overrides, n));
    j->run_open = true;
    struct tsr_run *r = &j->run;
    int64_t dp = 0;
    int V, W;
    TSR_TRY(tsr_run_check_world(r, j->comm.world, &dp));
    TSR_TRY(tsr_run_shards(r, r->parallel.tp, dp, &V, &W));
    TSR_TRY(tsr_job_load_model(&j->model, r));
    j->model_open = true;
    TSR_TRY(tsr_run_check_model(r, &j->model, r->parallel.tp, r->parallel.pp));
    r->parallel.dp = dp;
    tsr_mesh_place(&j->mesh, (int)r->parallel.tp, (int)r->parallel.pp, (int)dp, j->comm.rank);
    j->mesh.chunks = r->parallel.schedule == TSR_PIPE_INTERLEAVED ? (int)r->parallel.chunks : 1;
    j->mesh.V = V;
    j->mesh.W = W;
    return 0;
}

int tsr_job_load_run(struct tsr_job *j, const char *path, const char *const *overrides, int n) {
    return tsr_agree(&j->ctx, &j->comm, load_run(j, path, overrides, n));
}

// The tokenizer that the data need: the run's, else the one beside the model's weights.
static int load_tokenizer(struct tsr_job *j) {
    const struct tsr_run *r = &j->run;
    const char *dir = r->model.tokenizer ? r->model.tokenizer : r->model.from;
    char file[TSR_PATH_MAX];
    if (r->data.train.n == 0)
        return tsr_fail(TSR_ECONFIG, "data.train is missing: expected at least one path");
    if (!dir)
        return 0;
    TSR_TRY(tsr_path_join(file, dir, "tokenizer.json"));
    if (!r->model.tokenizer && !tsr_path_exists(file))
        return 0;
    TSR_TRY(tsr_tokenizer_load(&j->tokenizer, dir));
    TSR_TRY(tsr_path_join(j->tokenizer_dir, dir, ""));
    int32_t n = tsr_tokenizer_vocab(j->tokenizer);
    if (n > j->model.vocab)
        return tsr_fail(TSR_ECONFIG,
                        "the tokenizer in %s has %d tokens, but the model's vocabulary has %lld: "
                        "expected vocab_size of at least %d",
                        dir, n, (long long)j->model.vocab, n);
    return 0;
}

static int open_datasets(struct tsr_job *j, bool prepare) {
    const struct tsr_run *r = &j->run;
    char cache[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(cache, r->run.dir, "data"));
    bool held_out = r->data.valid.n == 0;
    struct tsr_dataset_opt opt = {.sources = &r->data.train,
                                  .cache_dir = cache,
                                  .tokenizer = j->tokenizer,
                                  .tokenizer_dir = j->tokenizer ? j->tokenizer_dir : NULL,
                                  .vocab = j->model.vocab,
                                  .seq_len = r->data.seq_len,
                                  .shuffle = r->data.shuffle,
                                  .seed = (uint64_t)r->run.seed,
                                  .part = held_out ? TSR_PART_TRAIN : TSR_PART_ALL,
                                  .isolated = r->data.packing == TSR_PACK_ISOLATED};
    TSR_TRY(prepare ? tsr_dataset_prepare(&opt) : tsr_dataset_open(&j->train, &opt));
    if (r->train.eval_every == 0)
        return 0;
    opt.shuffle = false;
    opt.part = held_out ? TSR_PART_HELD_OUT : TSR_PART_ALL;
    if (!held_out)
        opt.sources = &r->data.valid;
    return prepare ? tsr_dataset_prepare(&opt) : tsr_dataset_open(&j->valid, &opt);
}

int tsr_job_load_data(struct tsr_job *j) {
    j->progress.phase = TSR_PHASE_LOAD;
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, load_tokenizer(j)));
    int rc = j->comm.rank == 0 ? open_datasets(j, true) : 0;
    // Tokenizing a large text takes as long as it takes; a rank that dies ends the job anyway.
    TSR_TRY(j->comm.control->barrier(&j->ctx, &j->comm, &j->comm.world_group, "tokenized data",
                                     24 * 3600.0));
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, rc));
    return tsr_agree(&j->ctx, &j->comm, open_datasets(j, false));
}

int tsr_check_model_dir(const char *dir) {
    if (tsr_path_is_dir(dir))
        return 0;
    return tsr_fail(TSR_EMODEL, "%s: expected a model directory, found %s", dir,
                    tsr_path_exists(dir) ? "a file" : "nothing");
}

static void free_all(struct tsr_job *j) {
    tsr_dataset_close(j->train);
    tsr_dataset_close(j->valid);
    tsr_tokenizer_free(j->tokenizer);
    if (j->model_open)
        tsr_model_free(&j->model);
    if (j->run_open)
        tsr_run_free(&j->run);
    tsr_device_close(&j->device, &j->ctx, &j->comm);
    tsr_log_close();
}

void tsr_job_settle(struct tsr_job *j, int rc) {
    int code = tsr_exit_code(rc);
    // Ranks stop together at an interruption; of a failure they know what they agreed on.
    bool known_to_all = code == 0 || code == 5 || j->comm.culprit;
    if (j->comm_open && j->comm.world > 1 && !known_to_all)
        tsr_comm_abort(&j->comm, code);
}

int tsr_job_close(struct tsr_job *j, int rc) {
    int code = tsr_exit_code(rc);
    if (!j->comm_open) // each rank finds a mistake in the environment, one alone the rest
        return code == 2 ? tsr_report_once(j->command, rc) : tsr_report(j->command, rc);
    tsr_job_settle(j, rc);
    int speaker = j->comm.culprit ? j->comm.culprit - 1 : 0;
    if (rc < 0 && code != 5 && j->comm.rank == speaker) {
        // What the coordinator says of a save names the rank that failed, whoever hears it first.
        bool named = strncmp(tsr_error_text(), "rank ", 5) == 0;
        if (j->comm.culprit > 1 && !named)
            tsr_fail_prefix(rc, "rank %d on %s", j->comm.rank, j->comm.host);
        tsr_report(j->command, rc);
    }
    free_all(j);
    tsr_comm_close(&j->comm);
    return code;
}
