// `tessera bench`: speed as a share of what the machine can do, measured in the same run.
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "core/run.h"
#include "launcher/bench.h"
#include "launcher/commands.h"
#include "launcher/options.h"

static const struct {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} parts[] = {
    {"train", "the training step of a run file, on random tokens", tsr_bench_train},
    {"ops", "each operation of a device, beside its peak of products and of copying",
     tsr_bench_ops},
    {"comm", "what the ranks of a job say to each other", tsr_bench_comm},
};

enum { N_PARTS = sizeof parts / sizeof *parts };

static int fail_unknown(const char *found) {
    const char *names[N_PARTS];
    for (int i = 0; i < N_PARTS; i++)
        names[i] = parts[i].name;
    if (!found)
        return tsr_fail(
            TSR_EUSAGE,
            "expected `tessera bench train`, `tessera bench ops` or `tessera bench comm`");
    const char *near = tsr_nearest(found, names, N_PARTS);
    return tsr_fail(TSR_EUSAGE, "unknown part \"%s\"%s%s%s", found,
                    near ? "; the nearest is \"" : "", near ? near : "", near ? "\"" : "");
}

int tsr_cmd_bench(int argc, char **argv) {
    for (int i = 0; argc >= 2 && i < N_PARTS; i++)
        if (strcmp(argv[1], parts[i].name) == 0)
            return parts[i].run(argc - 1, argv + 1);
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        printf("usage: tessera bench PART [options]\n\n"
               "Measures speed as a share of what this machine reaches in the same run.\n\n");
        for (int i = 0; i < N_PARTS; i++)
            printf("  %-8s %s\n", parts[i].name, parts[i].about);
        return 0;
    }
    return tsr_report_once("tessera bench", fail_unknown(argc < 2 ? NULL : argv[1]));
}
