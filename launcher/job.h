// What every job over ranks opens first: communication, the device, the run and its model.
#ifndef TSR_LAUNCHER_JOB_H
#define TSR_LAUNCHER_JOB_H

#include "core/dataset.h"
#include "core/model.h"
#include "core/run.h"
#include "core/tokenizer.h"
#include "dist/comm.h"
#include "dist/mesh.h"
#include "launcher/device.h"

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
    struct tsr_device device;
    bool comm_open, run_open, model_open;
};

// Joins the MPI job, if this process is part of one.
int tsr_job_open(struct tsr_job *j, const char *command);
// Opens the device that the run asks for. Collective, after tsr_job_load_run.
int tsr_job_device(struct tsr_job *j);
// Run file, model, layout.
int tsr_job_load_run(struct tsr_job *j, const char *path, const char *const *overrides, int n);
// The model that a run is of. TSR_EMODEL, TSR_ECONFIG.
int tsr_job_load_model(struct tsr_model *m, const struct tsr_run *r);
// Tokenizer and datasets; rank 0 tokenizes, the others wait.
int tsr_job_load_data(struct tsr_job *j);

// After the work, before anything is closed that needs the other ranks: a failure that they don't
// know of is printed and ends the whole job here.
void tsr_job_settle(struct tsr_job *j, int rc);
// TSR_EMODEL when there is no such folder.
int tsr_check_model_dir(const char *dir);

// Ends the job in order, on all ranks; the one that failed first prints. Returns the exit code.
int tsr_job_close(struct tsr_job *j, int rc);

#endif
