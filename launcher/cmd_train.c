// `tessera train`: a rank when mpirun or a supervisor started it, else the supervisor.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/comm.h"
#include "launcher/attach.h"
#include "launcher/commands.h"
#include "launcher/device.h"
#include "launcher/options.h"
#include "launcher/supervise.h"
#include "launcher/supervise_spawn.h"
#include "launcher/training.h"

enum { MAX_OVERRIDES = 256 };

static void print_field(const char *path, const char *type, const char *dflt, const char *help,
                        bool fixed, void *arg) {
    (void)arg;
    printf("  %-28s %-26s  %s\n%59s%s%s\n", path, type, dflt, "", help,
           fixed ? " (fixed on resume)" : "");
}

static int supervise(const char *command, struct tsr_supervise_opt *opt) {
    struct tsr_run r;
    struct tsr_model m;
    int rc = tsr_run_load(&r, opt->run_file, opt->overrides, opt->n_overrides);
    if (rc < 0)
        return tsr_report(command, rc);
    struct tsr_device_want want = tsr_device_of_run(&r);
    bool here = !opt->hosts && !getenv("SLURM_JOB_NODELIST"); // else other hosts' devices count
    rc = here ? tsr_device_check(&want) : 0;
    if (rc == 0)
        rc = tsr_job_load_model(&m, &r);
    int code = rc < 0 ? tsr_report(command, rc) : 0;
    if (rc == 0) {
        opt->run = &r;
        opt->model = &m;
        code = tsr_supervise(opt);
        tsr_model_free(&m);
    }
    tsr_run_free(&r);
    return code;
}

int tsr_cmd_train(int argc, char **argv) {
    const char *args[MAX_OVERRIDES + 1], *hosts = NULL;
    int n_args;
    const struct tsr_option options[] = {
        {"hosts", 0, TSR_OPT_STRING, &hosts, "H1:N,H2:N", 0, 0,
         "hosts and how many ranks each takes; without it Slurm's, or this machine"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera train",
        .usage = "RUN.yaml [key=value …] [--hosts H1:N,H2:N]",
        .about =
            "Trains a model as the run file says; key=value overrides a field of it. Started\n"
            "alone it starts tp x pp x dp ranks by itself, watches them, and goes on from the\n"
            "last checkpoint when one fails; under mpirun or srun it is one of the ranks. The\n"
            "same command continues a run that was interrupted (checkpoint.resume).\n\n"
            "fields of the run file:",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .max_args = MAX_OVERRIDES + 1,
        .min_args = 1};
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc == 1 && tsr_comm_env_rank() == 0)
        tsr_run_fields_each(print_field, NULL);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    signal(SIGPIPE, SIG_IGN); // a run outlives the terminal that shows its progress
    if (tsr_is_rank()) {
        tsr_die_with_parent();
        return tsr_train_rank(cl.command, args[0], args + 1, n_args - 1);
    }
    struct tsr_supervise_opt opt = {
        .run_file = args[0], .overrides = args + 1, .n_overrides = n_args - 1, .hosts = hosts};
    return supervise(cl.command, &opt);
}
