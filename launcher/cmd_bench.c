// `tessera bench`: speed as a share of what the machine can do, measured in the same run.
#include "launcher/bench.h"
#include "launcher/commands.h"
#include "launcher/options.h"

static const struct tsr_part parts[] = {
    {"train", "the training step of a run file, on random tokens", tsr_bench_train},
    {"ops", "each operation of a device, beside its peak of products and of copying",
     tsr_bench_ops},
    {"comm", "what the ranks of a job say to each other", tsr_bench_comm},
};

int tsr_cmd_bench(int argc, char **argv) {
    return tsr_parts_run("tessera bench",
                         "Measures speed as a share of what this machine reaches in the same run.",
                         parts, sizeof parts / sizeof *parts, argc, argv);
}
