// What every job over ranks opens first: communication, the device, the run and its model.
#ifndef TSR_LAUNCHER_JOB_H
#define TSR_LAUNCHER_JOB_H

#include "core/dataset.h"
#include "core/model.h"
#include "core/run.h"
#include "core/tokenizer.h"
#include "dist/comm.h"
#include "dist/mesh.h"

struct tsr_job {
    const char *command; // for messages
    struct tsr_progress progress;
    struct tsr_comm comm;
    struct tsr_ctx ctx;
    struct tsr_mesh mesh;
    struct tsr_run run;
    struct tsr_model model;
    char tokenizer_dir[TSR_PATH_MAX]; // "" when there is none
    struct tsr_tokenizer *tokenizer;
    struct tsr_dataset *train, *valid; // valid may be NULL
    bool comm_open, ctx_open, run_open, model_open;
};

// Joins the MPI job, if this process is part of one.
int tsr_job_open(struct tsr_job *j, const char *command);
// Opens the compute device with its threads: `threads` 0 is cores / ranks on this host.
int tsr_job_device(struct tsr_job *j, int64_t threads);
// Run file, model, layout. The same mistake is found by every rank.
int tsr_job_load_run(struct tsr_job *j, const char *path, const char *const *overrides, int n);
// Tokenizer and datasets; rank 0 tokenizes, the others wait.
int tsr_job_load_data(struct tsr_job *j);

// Ends the job: on the user's mistake or an interruption, which all ranks know, rank 0 prints and
// everyone leaves in order; a failure of one rank ends the whole job. Returns the exit code.
int tsr_job_close(struct tsr_job *j, int rc);

#endif
