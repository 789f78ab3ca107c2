// `tessera plan`: what a run will hold and send, before it starts.
#include <stdio.h>
#include "core/error.h"
#include "launcher/commands.h"
#include "launcher/options.h"
#include "launcher/plan_job.h"

enum { MAX_OVERRIDES = 256 };

int tsr_cmd_plan(int argc, char **argv) {
    const char *args[MAX_OVERRIDES + 1];
    int n_args;
    struct tsr_planned_for where = {0};
    double memory = 0, device_memory = 0;
    bool json = false;
    const struct tsr_option options[] = {
        {"ranks-per-host", 0, TSR_OPT_INT, &where.per_host, "N", 1, TSR_MAX_RANKS,
         "ranks on each host (all of them)"},
        {"memory", 0, TSR_OPT_REAL, &memory, "GIB", 1e-3, 1e9,
         "memory of a host for this run (what this machine has available)"},
        {"devices-per-host", 0, TSR_OPT_INT, &where.devices, "N", 1, TSR_MAX_RANKS,
         "CUDA devices of a host (this machine's, or one for each rank)"},
        {"device-memory", 0, TSR_OPT_REAL, &device_memory, "GIB", 1e-3, 1e9,
         "memory of each of them for this run (what this machine's first one has free)"},
        {"json", 0, TSR_OPT_FLAG, &json, NULL, 0, 0, "one JSON object; bytes"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera plan",
        .usage = "RUN.yaml [key=value …] [options]",
        .about =
            "Says what each rank of a run will hold, by purpose and to the byte, what the ranks\n"
            "send in a step, the pipeline's bubble and the step's floating-point operations; and,\n"
            "when the run doesn't fit, what to change. Nothing is allocated or read but the run\n"
            "file and the model's config.json.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = MAX_OVERRIDES + 1};
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report(cl.command, rc);
    struct tsr_planned p;
    where.host_bytes = (uint64_t)(memory * 1073741824.0);
    where.device_bytes = (uint64_t)(device_memory * 1073741824.0);
    rc = tsr_planned_open(&p, cl.command, args[0], args + 1, n_args - 1, &where);
    if (rc == 0 && json)
        rc = tsr_plan_print_json(&p);
    else if (rc == 0)
        tsr_plan_print(&p);
    tsr_planned_close(&p);
    return rc < 0 ? tsr_report(cl.command, rc) : 0;
}
