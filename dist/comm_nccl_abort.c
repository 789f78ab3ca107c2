// Ends communicators after a failure.
//
// NCCL gives device memory back when it ends one, and for that CUDA waits until the device has
// nothing to do: also for another communicator's kernel, which waits for a peer that has died. So
// all of them are ended in one group, whose calls tell every kernel to end before the first memory
// is given back. It may last for ever nevertheless (a thread of NCCL's that doesn't return from a
// socket); so a thread of its own does it, and the failure is reported without it if need be: the
// process ends soon after.
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include "core/clock.h"
#include "core/log.h"
#include "dist/comm_nccl_private.h"

// The peers wait for this rank meanwhile. Until their own deadline, when they would tell only what
// they waited for, there must be time to tell them why.
static double most_seconds(const struct tsr_comm *c) {
    const double most = 10.0, share = 0.25 * c->timeout_s;
    return share < most ? share : most;
}

// Of the thread that ends them and the one that waits for it: the last one frees it.
struct ending {
    atomic_int users;
    atomic_bool over;
    int device, n;
    ncclComm_t comms[];
};

static void leave(struct ending *e) {
    if (atomic_fetch_sub(&e->users, 1) == 1)
        free(e);
}

static bool is_busy(ncclComm_t comm) {
    ncclResult_t state = ncclSuccess;
    return ncclCommGetAsyncError(comm, &state) == ncclSuccess && state == ncclInProgress;
}

// What fails here has nobody to tell: a failure is being reported already. Communicators whose last
// call is still under way come last, because NCCL waits for its end, which may need that the others
// have been told.
static void *end_all(void *arg) {
    struct ending *e = arg;
    int n_idle = 0;
    for (int i = 0; i < e->n; i++)
        if (!is_busy(e->comms[i])) {
            ncclComm_t idle = e->comms[i];
            e->comms[i] = e->comms[n_idle];
            e->comms[n_idle++] = idle;
        }
    (void)cudaSetDevice(e->device); // NCCL goes back to it, and would go to device 0
    (void)ncclGroupStart();
    for (int i = 0; i < e->n; i++)
        (void)ncclCommAbort(e->comms[i]);
    (void)ncclGroupEnd();
    atomic_store(&e->over, true);
    leave(e);
    return NULL;
}

static struct ending *take_all(struct tsr_nccl *n) {
    size_t most = 0;
    for (struct tsr_nccl_lane *l = n->lanes; l; l = l->next)
        most++;
    struct ending *e = calloc(1, sizeof *e + most * sizeof *e->comms);
    for (struct tsr_nccl_lane *l = n->lanes; l; l = l->next) {
        if (e != NULL && l->comm != NULL)
            e->comms[e->n++] = l->comm;
        l->comm = NULL;
    }
    if (e != NULL) {
        e->users = 2;
        e->device = n->cuda->device;
    }
    return e;
}

void tsr_nccl_abort(struct tsr_nccl *n) {
    struct ending *e = take_all(n);
    pthread_t thread;
    if (e == NULL || e->n == 0 || pthread_create(&thread, NULL, end_all, e) != 0) {
        free(e); // the end of the process ends them, too
        return;
    }
    (void)pthread_detach(thread);
    const double begun = tsr_now(), most = most_seconds(n->comm);
    while (!atomic_load(&e->over) && tsr_now() - begun < most)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    if (!atomic_load(&e->over))
        tsr_warn("NCCL didn't end its communicators within %.1f s: they are left as they are",
                 most);
    leave(e);
}
