// NCCL for simulated devices: what the environment lets go wrong, and communicators. MPI is called
// on the thread that makes communicators only; other threads may ask for errors and abort.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/simt/fake/fake_nccl_private.h"

struct identity {
    int root, tag; // world rank of communicator rank 0; tags of joining, and then of messages
};

struct fake_nccl *fake_nccl(void) {
    static struct fake_nccl state;
    return &state;
}

void fake_nccl_stop(const char *text) {
    fprintf(stderr, "simulated NCCL: %s\n", text);
    abort();
}

void *fake_nccl_must(void *p) {
    if (p == NULL)
        fake_nccl_stop("no memory");
    return p;
}

int fake_nccl_world_rank(void) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

static long number(const char *words, const char *name) {
    const char *at = strstr(words, name);
    return at != NULL ? atol(at + strlen(name)) : 0;
}

static void look_at_environment(void) {
    const char *words = getenv("TESSERA_FAKE_NCCL");
    if (fake_nccl()->looked)
        return;
    fake_nccl()->looked = true;
    fake_nccl()->main = pthread_self();
    if (words == NULL ||
        (strstr(words, "rank=") && number(words, "rank=") != fake_nccl_world_rank()))
        return;
    fake_nccl()->init_hang = strstr(words, "init-hang") != NULL;
    fake_nccl()->init_error = strstr(words, "init-error") != NULL;
    fake_nccl()->hang = fake_nccl()->init_hang ? 0 : number(words, "hang=");
    fake_nccl()->error = number(words, "error=");
    fake_nccl()->die = number(words, "die=");
    fake_nccl()->abort_hang = strstr(words, "abort-hang") != NULL;
}

const char *ncclGetErrorString(ncclResult_t rc) {
    static const char *const text[] = {"no error",
                                       "unhandled cuda error",
                                       "unhandled system error",
                                       "internal error",
                                       "invalid argument",
                                       "invalid usage",
                                       "remote process exited or there was a network error",
                                       "operation in progress"};
    return text[rc];
}

const char *ncclGetLastError(ncclComm_t comm) {
    return comm->state == ncclRemoteError ? "simulated\nfailure" : "";
}

ncclResult_t ncclGetVersion(int *version) {
    *version = 22809;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    look_at_environment();
    static int n_ids;
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    struct identity i = {.root = fake_nccl_world_rank()};
    i.tag = 1 + 2 * (n_ids++ * size + i.root);
    memset(id, 0, sizeof *id);
    memcpy(id->internal, &i, sizeof i);
    return ncclSuccess;
}

// ---- all communicators

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ncclComm *all;

static void remember(struct ncclComm *c) {
    pthread_mutex_lock(&lock);
    c->next = all;
    all = c;
    pthread_mutex_unlock(&lock);
}

static void forget(struct ncclComm *c) {
    pthread_mutex_lock(&lock);
    struct ncclComm **at = &all;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    pthread_mutex_unlock(&lock);
}

void fake_nccl_abort_all(void) {
    pthread_mutex_lock(&lock);
    for (struct ncclComm *c = all; c != NULL; c = c->next)
        if (!c->aborted && c->n_queued > 0)
            fake_nccl_stop("ncclCommAbort would wait for the work of another communicator");
    pthread_mutex_unlock(&lock);
    while (fake_nccl()->abort_hang)
        pause();
}

// Each rank says to the root where it is.
static void begin_joining(ncclComm_t c, int root) {
    if (c->rank != 0) {
        MPI_Isend(&c->self, sizeof c->self, MPI_BYTE, root, c->tag, MPI_COMM_WORLD, &c->request[0]);
        c->n_requests = 1;
    }
    for (int r = 1; c->rank == 0 && r < c->size; r++)
        MPI_Irecv(&c->members[r], sizeof *c->members, MPI_BYTE, MPI_ANY_SOURCE, c->tag,
                  MPI_COMM_WORLD, &c->request[c->n_requests++]);
}

// The root answers with where all are.
static void answer(ncclComm_t c, int root) {
    c->n_requests = 0;
    if (c->rank != 0)
        MPI_Irecv(c->world, c->size, MPI_INT, root, c->tag, MPI_COMM_WORLD,
                  &c->request[c->n_requests++]);
    for (int r = 1; c->rank == 0 && r < c->size; r++)
        c->world[c->members[r].rank] = c->members[r].world;
    for (int r = 1; c->rank == 0 && r < c->size; r++)
        MPI_Isend(c->world, c->size, MPI_INT, c->world[r], c->tag, MPI_COMM_WORLD,
                  &c->request[c->n_requests++]);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    struct identity i;
    memcpy(&i, id.internal, sizeof i);
    look_at_environment();
    if (config->blocking != 0 || i.tag == 0 || rank < 0 || rank >= n_ranks)
        return ncclInvalidArgument;
    if (fake_nccl()->init_error)
        return ncclSystemError;
    ncclComm_t c = fake_nccl_must(calloc(1, sizeof *c));
    size_t n = (size_t)n_ranks;
    c->rank = rank;
    c->size = n_ranks;
    c->tag = i.tag;
    c->self = (struct member){rank, fake_nccl_world_rank()};
    c->members = fake_nccl_must(calloc(n, sizeof *c->members));
    c->world = fake_nccl_must(calloc(n, sizeof *c->world));
    c->request = fake_nccl_must(calloc(2 * n, sizeof(MPI_Request)));
    c->world[0] = i.root;
    c->state = ncclInProgress;
    if (!fake_nccl()->init_hang)
        begin_joining(c, i.root);
    remember(c);
    *out = c;
    return ncclInProgress;
}

// What a call goes on with behind the caller's back.
static void go_on(ncclComm_t c) {
    int done = 0;
    if (c->asked != NULL || c->finalizing) {
        if (!c->slow || (c->finalizing && c->n_queued > 0)) {
            c->slow = true; // the next time
            return;
        }
        fake_nccl_launch(c);
        c->slow = false;
        c->finalized = c->finalizing;
        c->finalizing = false;
        c->state = ncclSuccess;
        return;
    }
    MPI_Testall(c->n_requests, c->request, &done, MPI_STATUSES_IGNORE);
    if (!done)
        return;
    if (c->stage++ == 0)
        answer(c, c->world[0]);
    else
        c->state = ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) {
    if (c->state == ncclInProgress && pthread_equal(pthread_self(), fake_nccl()->main) &&
        !fake_nccl()->init_hang)
        go_on(c);
    if (fake_nccl()->broken && c->state == ncclSuccess)
        c->state = ncclRemoteError;
    *state = (ncclResult_t)c->state;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c) {
    if (c->state != ncclSuccess || c->finalized)
        return ncclInvalidArgument;
    c->finalizing = true;
    c->state = ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (!c->finalized || c->state != ncclSuccess)
        fake_nccl_stop("ncclCommDestroy would wait for the other ranks");
    forget(c);
    free(c->members);
    free(c->world);
    free(c->request);
    free(c);
    return ncclSuccess;
}
