// What all transports share: opening, closing, the environment.
#include "dist/comm.h"
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "dist/comm_impl.h"

int tsr_comm_init(struct tsr_comm *c, struct tsr_progress *p) {
    *c = (struct tsr_comm){.world = 1, .local_size = 1, .timeout_s = 600, .progress = p};
    if (gethostname(c->host, sizeof c->host - 1) != 0)
        snprintf(c->host, sizeof c->host, "unknown");
    const char *text = getenv("TESSERA_TIMEOUT");
    if (!text || !*text)
        return 0;
    char *end;
    errno = 0;
    double seconds = strtod(text, &end);
    if (*end || errno || !isfinite(seconds) || seconds <= 0)
        return tsr_fail(TSR_EUSAGE, "TESSERA_TIMEOUT: expected seconds above 0, found '%s'", text);
    c->timeout_s = seconds;
    return 0;
}

static int env_int(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

// srun sets SLURM_STEP_NUM_TASKS for each task; a batch script, which isn't a rank, has only
// SLURM_NTASKS.
int tsr_comm_slurm_tasks(void) {
    return getenv("SLURM_PROCID") ? env_int("SLURM_STEP_NUM_TASKS") : 0;
}

int tsr_comm_under_mpi(void) {
    return env_int("OMPI_COMM_WORLD_SIZE") >= 1 || getenv("PMIX_RANK") || getenv("PMI_RANK") ||
           tsr_comm_slurm_tasks() > 1;
}

int tsr_comm_env_rank(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]))
            return env_int(names[i]);
    return tsr_comm_slurm_tasks() > 1 ? env_int("SLURM_PROCID") : 0;
}

void tsr_comm_close(struct tsr_comm *c) {
    if (c->ops)
        c->ops->close(c);
    *c = (struct tsr_comm){0};
}

_Noreturn void tsr_comm_abort(struct tsr_comm *c, int exit_code) {
    char who[sizeof c->host + 32];
    snprintf(who, sizeof who, "rank %d (host %s)", c->rank, c->host);
    const char *text = tsr_error_text();
    bool told = strncmp(text, who, strlen(who)) == 0; // a wait's sentence begins like this
    fflush(stdout);
    fprintf(stderr, "tessera: error: %s%s%s\n", told ? "" : who, told ? "" : ": ", text);
    fflush(stderr);
    if (c->ops)
        c->ops->abort(c, exit_code);
    _exit(exit_code);
}
