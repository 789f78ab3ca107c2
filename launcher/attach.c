#include "launcher/attach.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "core/error.h"
#include "dist/leaves.h"
#include "launcher/epoch.h"

enum { ADDRESS_MAX = TSR_HOST_MAX + 16 };
static const double PROBE_S = 30.0; // a network file system may show a new file late
static const double LEAVE_S = 30.0; // a rank may still end a write

// What rank 0 tells the others.
struct introduction {
    uint64_t epoch, token;
    char address[ADDRESS_MAX];
};

bool tsr_is_rank(void) {
    return getenv("TESSERA_COORDINATOR") != NULL || tsr_comm_under_mpi();
}

// The supervisor's coordinator.
static int from_environment(struct introduction *in) {
    const char *address = getenv("TESSERA_COORDINATOR"), *epoch = getenv("TESSERA_EPOCH");
    char *end = NULL;
    errno = 0;
    unsigned long long n = epoch ? strtoull(epoch, &end, 10) : 0;
    if (n == 0 || errno || *end)
        return tsr_fail(TSR_EUSAGE,
                        "TESSERA_EPOCH: expected a positive integer beside TESSERA_COORDINATOR, "
                        "found \"%s\"",
                        epoch ? epoch : "");
    if (strlen(address) >= ADDRESS_MAX)
        return tsr_fail(TSR_EUSAGE, "TESSERA_COORDINATOR: an address of %zu characters",
                        strlen(address));
    in->epoch = n;
    strcpy(in->address, address);
    return 0;
}

// One of our own, for ranks that nobody supervises.
static int host_one(struct tsr_attachment *a, const struct tsr_job *j, struct introduction *in) {
    const struct tsr_run *r = &j->run;
    TSR_TRY(tsr_epoch_take(r->run.dir, &in->epoch));
    bool one_host = j->comm.local_size == j->comm.world;
    int64_t port = r->supervise.metrics_port;
    struct tsr_address address;
    struct tsr_coordinator_opt opt = {
        .core = {.run_name = r->run.name,
                 .run_dir = r->run.dir,
                 .epoch = in->epoch,
                 .heartbeat_s = (double)r->supervise.heartbeat_ms * 1e-3,
                 .lost_s = (double)r->supervise.lost_ms * 1e-3,
                 .stall_s = (double)r->supervise.stall_ms * 1e-3,
                 .first_s = (double)r->supervise.first_ms * 1e-3,
                 .keep = r->checkpoint.keep},
        .host = one_host ? NULL : "0.0.0.0", // its own name may be a loopback address to it
        .metrics_port = port ? (int)port : TSR_METRICS_NONE};
    TSR_TRY(tsr_coordinator_thread_open(&a->coordinator, &opt, &address));
    tsr_address_text(in->address, address.host, address.port);
    return 0;
}

static int introduce(struct tsr_attachment *a, const struct tsr_job *j, struct introduction *in) {
    TSR_TRY(tsr_mkdir_p(j->run.run.dir));
    if (getrandom(&in->token, sizeof in->token, 0) != sizeof in->token)
        return tsr_fail_errno(errno, "cannot read", "random numbers");
    TSR_TRY(getenv("TESSERA_COORDINATOR") ? from_environment(in) : host_one(a, j, in));
    return tsr_probe_put(j->run.run.dir, in->token);
}

static int poll_transport(void *arg) {
    struct tsr_comm *c = arg;
    return c->ops->poll(c);
}

int tsr_attach(struct tsr_attachment *a, struct tsr_job *j) {
    struct tsr_comm *c = &j->comm;
    struct introduction in = {0};
    const char *dir = j->run.run.dir;
    *a = (struct tsr_attachment){.begun = true};
    TSR_TRY(tsr_agree(&j->ctx, c, c->rank == 0 ? introduce(a, j, &in) : 0));
    TSR_TRY(c->control->broadcast(&j->ctx, c, &c->world_group, &in, sizeof in, 0));
    int rc = tsr_agree(&j->ctx, c, tsr_probe_find(dir, in.token, PROBE_S));
    if (c->rank == 0)
        rc = rc < 0 ? rc : tsr_probe_remove(dir, in.token);
    TSR_TRY(tsr_agree(&j->ctx, c, rc));
    a->epoch = in.epoch;
    struct tsr_agent_opt opt = {.rank = c->rank,
                                .world = c->world,
                                .tp = j->mesh.tp,
                                .pp = j->mesh.pp,
                                .dp = j->mesh.dp,
                                .host = c->host,
                                .run_dir = dir,
                                .address = in.address,
                                .epoch = in.epoch,
                                .steps = j->run.train.steps,
                                .progress = &j->progress,
                                .poll = c->ops->poll ? poll_transport : NULL,
                                .poll_arg = c};
    return tsr_agree(&j->ctx, c, tsr_agent_open(&a->agent, &opt));
}

void tsr_detach(struct tsr_attachment *a, struct tsr_job *j, int exit_code) {
    if (!a->begun)
        return;
    tsr_agent_close(a->agent, exit_code);
    // A rank that is still connected would take its coordinator for dead.
    j->comm.control->barrier(&j->ctx, &j->comm, &j->comm.world_group, "the end of all agents",
                             LEAVE_S);
    tsr_coordinator_thread_close(a->coordinator);
    *a = (struct tsr_attachment){0};
}
