#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "kernels/ops.h"
#include "launcher/doctor.h"
#include "launcher/machine.h"

static void cpu_model(char *out, size_t n) {
    char line[512];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, n, "unknown model");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, n, "%s", colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

// One core's peak with an instruction set; negative: this CPU lacks it.
static double peak_of(const char *isa, int threads) {
    struct tsr_ctx ctx;
    if (tsr_cpu_open(&ctx, isa, threads) < 0)
        return -1.0;
    double gflops = ctx.ops->measure_peak(&ctx, TSR_PEAK_CAREFUL);
    ctx.ops->close(&ctx);
    return gflops;
}

static void instruction_sets(struct tsr_doctor *d, int cores) {
    static const char *const sets[] = {"avx512", "avx2", "portable"};
    char text[256] = "";
    const char *best = NULL;
    for (int i = 0; i < 3; i++) {
        double gflops = peak_of(sets[i], 1);
        size_t at = strlen(text);
        if (gflops < 0)
            continue;
        best = best ? best : sets[i];
        snprintf(text + at, sizeof text - at, "%s%s %.0f", at ? ", " : "", sets[i], gflops);
    }
    tsr_doctor_say(d, best && strcmp(best, "portable") != 0 ? TSR_GOOD : TSR_DOUBTFUL, "FMA peak",
                   best && strcmp(best, "portable") == 0
                       ? "a CPU with AVX2 or AVX-512 is many times faster"
                       : NULL,
                   "%s GFLOP/s on one core (fp32, measured)", text);
    double all = peak_of(NULL, cores), one = peak_of(NULL, 1);
    double share = one > 0 ? all / (one * cores) : 1.0;
    tsr_doctor_say(
        d, share < 0.6 && cores > 1 ? TSR_DOUBTFUL : TSR_GOOD, "all cores",
        share < 0.6 && cores > 1
            ? "other programs are running, or these are hardware threads that share cores"
            : NULL,
        "%.0f GFLOP/s on %d, %.0f %% of as many single ones", all, cores, 100 * share);
}

void tsr_doctor_cpu(struct tsr_doctor *d) {
    char model[256];
    int cores = tsr_machine_cores();
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    double quota = tsr_machine_cpu_quota("");
    cpu_model(model, sizeof model);
    tsr_doctor_say(d, TSR_GOOD, "processor", NULL, "%s", model);
    tsr_doctor_say(d, cores < online ? TSR_DOUBTFUL : TSR_GOOD, "cores",
                   cores < online ? "this process is bound to a part of them (taskset, cpuset, or "
                                    "mpirun without --bind-to none)"
                                  : NULL,
                   "%d of %ld may be used", cores, online);
    if (quota > 0)
        tsr_doctor_say(d, quota < cores ? TSR_DOUBTFUL : TSR_GOOD, "quota",
                       quota < cores ? "set device.threads so that ranks x threads is no more than "
                                       "that"
                                     : NULL,
                       "the control group grants the time of %.2f cores", quota);
    instruction_sets(d, cores);
}
