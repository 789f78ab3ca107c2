// Making and ending communicators. NCCL's calls for it don't block (ncclConfig_t.blocking = 0):
// they are asked until they are through or the deadline has passed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/log.h"
#include "dist/comm_nccl_private.h"

// ---- ranks that share a device

// What a rank tells the others about its device.
struct place {
    char host[256];
    char device[64]; // its address on the bus
};

// NCCL refuses two ranks on one device of a host; so each says that it is a host of its own. They
// then speak through sockets, and as little as can be of the device is taken by each.
static int set_shared(struct tsr_nccl *n) {
    char id[sizeof n->comm->host + 32];
    snprintf(id, sizeof id, "%s-rank-%d", n->comm->host, n->comm->rank);
    const struct {
        const char *name, *value;
    } settings[] = {{"NCCL_HOSTID", id},         {"NCCL_IB_DISABLE", "1"},
                    {"NCCL_MAX_CTAS", "1"},      {"NCCL_ALGO", "Ring"},
                    {"NCCL_PROTO", "Simple"},    {"NCCL_NVLS_ENABLE", "0"},
                    {"NCCL_SOCKET_IFNAME", "lo"}};
    bool one_host = n->comm->local_size == n->comm->world;
    for (size_t i = 0; i < sizeof settings / sizeof *settings - !one_host; i++)
        if (setenv(settings[i].name, settings[i].value, 0) != 0)
            return tsr_fail(TSR_ENOMEM, "no memory for the environment");
    return 0;
}

// The most ranks that one device has.
static int most_on_one(const struct place *places, int world) {
    int most = 0;
    for (int a = 0; a < world; a++) {
        int same = 0;
        for (int b = 0; b < world; b++)
            same += memcmp(&places[a], &places[b], sizeof *places) == 0;
        most = same > most ? same : most;
    }
    return most;
}

static int gather_places(struct tsr_nccl *n, struct place *places, size_t *n_bytes) {
    struct tsr_comm *c = n->comm;
    struct place *own = &places[c->rank];
    for (int r = 0; r < c->world; r++)
        n_bytes[r] = sizeof *places;
    snprintf(own->host, sizeof own->host, "%s", c->host);
    TSR_CUDA_TRY(cudaDeviceGetPCIBusId, own->device, (int)sizeof own->device, n->cuda->device);
    return c->control->all_gather(&n->ctx, c, &c->world_group, places, own, n_bytes, NULL);
}

int tsr_nccl_prepare(struct tsr_nccl *n) {
    struct tsr_comm *c = n->comm;
    struct place *places = calloc((size_t)c->world, sizeof *places);
    size_t *n_bytes = calloc((size_t)c->world, sizeof *n_bytes);
    int sharing = 0;
    int rc = places && n_bytes ? gather_places(n, places, n_bytes)
                               : tsr_fail(TSR_ENOMEM, "no memory for %d ranks", c->world);
    if (rc == 0)
        sharing = most_on_one(places, c->world);
    free(places);
    free(n_bytes);
    if (rc < 0 || sharing < 2)
        return rc;
    if (c->rank == 0)
        tsr_warn("up to %d ranks share one GPU: they talk through sockets, which is slow", sharing);
    return set_shared(n);
}

// ---- lanes

// `lock` is held.
static void forget(struct tsr_nccl *n, struct tsr_nccl_lane *lane) {
    struct tsr_nccl_lane **at = &n->lanes;
    while (*at != NULL && *at != lane)
        at = &(*at)->next;
    if (*at != NULL)
        *at = lane->next;
}

static void free_lane(struct tsr_nccl_lane *lane) {
    while (lane->oldest != NULL) {
        struct tsr_nccl_op *op = lane->oldest;
        lane->oldest = op->next;
        (void)cudaEventDestroy(op->done);
        free(op);
    }
    if (lane->ready != NULL)
        (void)cudaEventDestroy(lane->ready);
    if (lane->stream != NULL)
        (void)cudaStreamDestroy(lane->stream);
    free(lane);
}

static int make_stream(struct tsr_nccl_lane *lane) {
    TSR_CUDA_TRY(cudaStreamCreateWithFlags, &lane->stream, cudaStreamNonBlocking);
    TSR_CUDA_TRY(cudaEventCreateWithFlags, &lane->ready, cudaEventDisableTiming);
    return 0;
}

// Joins the other ranks. The lane is among n->lanes as soon as it has a communicator, so that a
// failure ends it, too.
static int join_ranks(struct tsr_nccl *n, struct tsr_nccl_lane *lane, ncclUniqueId id, int rank,
                      int size) {
    static const char what[] = "all ranks to join NCCL";
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.commName = lane->group;
    TSR_TRY(tsr_nccl_begin(n));
    ncclResult_t rc = ncclCommInitRankConfig(&lane->comm, size, id, rank, &config);
    if (lane->comm != NULL) {
        lane->next = n->lanes;
        n->lanes = lane;
    }
    return tsr_nccl_end(n, lane, rc, what);
}

int tsr_nccl_lane_open(struct tsr_nccl *n, struct tsr_nccl_lane **out, const char *group, int peer,
                       ncclUniqueId id, int rank, int size) {
    struct tsr_nccl_lane *lane = calloc(1, sizeof *lane);
    if (lane == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for group %s", group);
    lane->group = group;
    lane->peer = peer;
    int rc = make_stream(lane);
    if (rc == 0)
        rc = join_ranks(n, lane, id, rank, size);
    if (rc == 0) {
        *out = lane;
        return 0;
    }
    pthread_mutex_lock(&n->lock);
    forget(n, lane); // a failure to join has ended its communicator
    pthread_mutex_unlock(&n->lock);
    free_lane(lane);
    return rc;
}

// ncclCommFinalize waits for the other ranks' calls of it, ncclCommDestroy no more.
static int leave(struct tsr_nccl *n, struct tsr_nccl_lane *lane) {
    static const char what[] = "the end of all work";
    TSR_TRY(tsr_cuda_wait_stream(n->cuda, lane->stream, what));
    TSR_TRY(tsr_nccl_begin(n));
    return tsr_nccl_end(n, lane, ncclCommFinalize(lane->comm), what);
}

void tsr_nccl_lane_close(struct tsr_nccl *n, struct tsr_nccl_lane *lane) {
    if (lane == NULL)
        return;
    int rc = n->cuda->lost ? TSR_EIO : leave(n, lane);
    if (rc < 0)
        (void)tsr_nccl_fail(n, false, (enum tsr_code)rc, tsr_error_text());
    pthread_mutex_lock(&n->lock);
    forget(n, lane);
    if (lane->comm != NULL) // NULL: a failure has ended it
        (void)ncclCommDestroy(lane->comm);
    pthread_mutex_unlock(&n->lock);
    free_lane(lane);
}
