#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/comm.h"
#include "launcher/child.h"
#include "launcher/doctor.h"
#include "launcher/machine.h"

enum { DEADLINE_S = 20, ROUNDS = 50, LARGE = 1 << 20 };

// ---- a rank

static int check_sum(struct tsr_ctx *ctx, struct tsr_comm *c, float *buf, size_t n) {
    for (size_t i = 0; i < n; i++)
        buf[i] = (float)(c->rank + 1) + (float)(i % 64);
    TSR_TRY(c->control->all_reduce(ctx, c, &c->world_group, buf, n, NULL));
    for (size_t i = 0; i < n; i++) {
        float expected = (float)(c->world * (c->world + 1) / 2) + (float)(c->world * (int)(i % 64));
        if (buf[i] != expected)
            return tsr_fail(TSR_EPEER, "a sum over ranks is wrong: expected %g, found %g",
                            (double)expected, (double)buf[i]);
    }
    return 0;
}

static int try_comm(struct tsr_comm *c, float *buf) {
    struct tsr_ctx ctx = {0}; // sums over ranks of host memory use none of it
    TSR_TRY(check_sum(&ctx, c, buf, 1000));
    TSR_TRY(check_sum(&ctx, c, buf, LARGE));
    double begin = tsr_now();
    for (int i = 0; i < ROUNDS; i++)
        TSR_TRY(c->control->all_reduce(&ctx, c, &c->world_group, buf, 1, NULL));
    double small = (tsr_now() - begin) / ROUNDS;
    begin = tsr_now();
    for (int i = 0; i < 5; i++)
        TSR_TRY(c->control->all_reduce(&ctx, c, &c->world_group, buf, LARGE, NULL));
    double large = (tsr_now() - begin) / 5;
    if (c->rank == 0)
        printf("ranks %d, all-reduce of 4 bytes %.1f us, of 4 MiB %.2f ms\n", c->world, small * 1e6,
               large * 1e3);
    return 0;
}

int tsr_doctor_rank(void) {
    struct tsr_comm c;
    int rc = tsr_comm_open_mpi(&c, NULL, NULL, NULL);
    float *buf = calloc(LARGE, sizeof *buf);
    if (rc == 0 && !buf)
        rc = tsr_fail(TSR_ENOMEM, "no memory for a sum");
    if (rc == 0)
        rc = try_comm(&c, buf);
    free(buf);
    if (rc < 0)
        tsr_comm_abort(&c, tsr_exit_code(rc));
    tsr_comm_close(&c);
    return 0;
}

// ---- the parent

// The last line of a program's output that says something, without its end.
static const char *last_line(struct tsr_buf *b) {
    while (b->len && (b->data[b->len - 1] == '\n' || b->data[b->len - 1] == '-'))
        b->data[--b->len] = 0;
    const char *at = b->data ? strrchr(b->data, '\n') : NULL;
    return at ? at + 1 : b->data ? b->data : "";
}

// The line of the output that begins with `prefix`, ended; NULL: none.
static char *line_of(struct tsr_buf *b, const char *prefix) {
    size_t n = strlen(prefix);
    for (char *p = b->data; p && *p;) {
        char *end = p + strcspn(p, "\n");
        if (strncmp(p, prefix, n) == 0) {
            *end = 0;
            return p;
        }
        p = *end ? end + 1 : end;
    }
    return NULL;
}

static bool find_mpirun(struct tsr_doctor *d) {
    const char *argv[] = {"mpirun", "--version", NULL};
    struct tsr_child c = {.argv = argv, .env = tsr_mpirun_env(), .timeout_s = DEADLINE_S};
    struct tsr_child_result r;
    if (tsr_child_run(&c, &r) < 0) {
        tsr_doctor_say(d, TSR_BROKEN, "Open MPI", "apt install openmpi-bin", "%s",
                       tsr_error_text());
        return false;
    }
    const char *line = line_of(&r.out, "mpirun (Open MPI) ");
    tsr_doctor_say(d, line ? TSR_GOOD : TSR_DOUBTFUL, "Open MPI",
                   line ? NULL : "tessera is built for Open MPI 4.1", "%s",
                   line ? line + strlen("mpirun (Open MPI) ") : last_line(&r.out));
    tsr_buf_free(&r.out);
    return true;
}

static void start_ranks(struct tsr_doctor *d) {
    const char *argv[24];
    char count[16], self[TSR_PATH_MAX];
    int n = tsr_mpirun_words(argv, count, 2);
    if (tsr_own_program(self) < 0) {
        tsr_doctor_say(d, TSR_BROKEN, "two ranks", NULL, "%s", tsr_error_text());
        return;
    }
    argv[n++] = self;
    argv[n++] = "doctor";
    argv[n++] = "--rank";
    argv[n] = NULL;
    struct tsr_child c = {.argv = argv, .env = tsr_mpirun_env(), .timeout_s = DEADLINE_S};
    struct tsr_child_result r;
    double begin = tsr_now();
    if (tsr_child_run(&c, &r) < 0) {
        tsr_doctor_say(d, TSR_BROKEN, "two ranks", NULL, "%s", tsr_error_text());
        return;
    }
    double seconds = tsr_now() - begin;
    const char *line = line_of(&r.out, "ranks 2, ");
    if (r.timed_out)
        tsr_doctor_say(d, TSR_BROKEN, "two ranks",
                       "does the host's own name resolve? mpirun -np 2 hostname should answer",
                       "no answer from mpirun in %d s", DEADLINE_S);
    else if (r.exit_code != 0 || !line)
        tsr_doctor_say(d, TSR_BROKEN, "two ranks", "mpirun -np 2 hostname should answer",
                       "mpirun ended with %d: %s", r.exit_code, last_line(&r.out));
    else
        tsr_doctor_say(d, TSR_GOOD, "two ranks", NULL, "started in %.1f s; %s", seconds,
                       line + strlen("ranks 2, "));
    tsr_buf_free(&r.out);
}

void tsr_doctor_mpi(struct tsr_doctor *d) {
    if (tsr_comm_under_mpi()) {
        tsr_doctor_say(d, TSR_DOUBTFUL, "Open MPI", "run tessera doctor without mpirun",
                       "not tried: this process is a rank itself");
        return;
    }
    if (!find_mpirun(d))
        return;
    start_ranks(d);
    const char *yield = getenv("OMPI_MCA_mpi_yield_when_idle");
    bool off = yield && strcmp(yield, "0") == 0;
    tsr_doctor_say(d, off ? TSR_DOUBTFUL : TSR_GOOD, "waiting ranks",
                   off ? "unset OMPI_MCA_mpi_yield_when_idle: ranks that share cores would starve "
                         "each other"
                       : "with your own mpirun and more ranks than that: --oversubscribe --bind-to "
                         "none",
                   "%s; %d core%s for ranks x threads",
                   off ? "spin (mpi_yield_when_idle is 0)" : "yield (mpi_yield_when_idle)",
                   tsr_machine_cores(), tsr_machine_cores() == 1 ? "" : "s");
}
