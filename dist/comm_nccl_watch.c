// What is under way, whether it has failed, and whether it takes too long. A collective whose peer
// has died runs on the device until its communicator is aborted; so a failure that any of them
// shows ends all of them, and each wait of the host comes back with the reason.
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/clock.h"
#include "dist/comm_nccl_private.h"

int tsr_nccl_fail(struct tsr_nccl *n, bool locked, enum tsr_code code, const char *text) {
    if (!locked)
        pthread_mutex_lock(&n->lock);
    if (n->failed == 0) {
        n->failed = code;
        snprintf(n->failure, sizeof n->failure, "%s", text);
        tsr_nccl_abort(n);
    }
    code = (enum tsr_code)n->failed;
    (void)tsr_fail(code, "%s", n->failure);
    if (!locked)
        pthread_mutex_unlock(&n->lock);
    return code;
}

// "rank 1 (host b): all_reduce in group tp failed: " and NCCL's words.
static void describe(const struct tsr_nccl *n, const struct tsr_nccl_lane *lane, const char *what,
                     ncclResult_t rc, char *text, size_t size) {
    const struct tsr_comm *c = n->comm;
    char peer[32] = "";
    const char *more = lane->comm != NULL ? ncclGetLastError(lane->comm) : NULL;
    if (lane->peer >= 0)
        snprintf(peer, sizeof peer, " with rank %d", lane->peer);
    snprintf(text, size, "rank %d (host %s): %s%s in group %s failed: NCCL: %s%s%s", c->rank,
             c->host, what, peer, lane->group, ncclGetErrorString(rc), more && *more ? ": " : "",
             more ? more : "");
    char *line = strpbrk(text, "\r\n"); // NCCL's text may have several
    if (line != NULL)
        *line = 0;
}

static enum tsr_code code_of(ncclResult_t rc) {
    return rc == ncclUnhandledCudaError ? TSR_EIO : TSR_EPEER;
}

static int fail_call(struct tsr_nccl *n, bool locked, const struct tsr_nccl_lane *lane,
                     const char *what, ncclResult_t rc) {
    char text[sizeof n->failure];
    describe(n, lane, what, rc, text, sizeof text);
    return tsr_nccl_fail(n, locked, code_of(rc), text);
}

// ---- calls

int tsr_nccl_begin(struct tsr_nccl *n) {
    pthread_mutex_lock(&n->lock);
    if (n->failed == 0)
        return 0;
    int code = tsr_fail((enum tsr_code)n->failed, "%s", n->failure);
    pthread_mutex_unlock(&n->lock);
    return code;
}

int tsr_nccl_settle(struct tsr_nccl *n, struct tsr_nccl_lane *lane, const char *what) {
    const struct tsr_comm *c = n->comm;
    const double begun = tsr_now();
    for (;;) {
        ncclResult_t state = ncclInProgress;
        TSR_TRY(tsr_nccl_begin(n));
        ncclResult_t rc = ncclCommGetAsyncError(lane->comm, &state);
        pthread_mutex_unlock(&n->lock);
        state = rc == ncclSuccess ? state : rc;
        if (state == ncclSuccess)
            return 0;
        if (state != ncclInProgress)
            return fail_call(n, false, lane, what, state);
        double waited = tsr_now() - begun;
        if (waited > c->timeout_s) {
            char text[sizeof n->failure];
            snprintf(text, sizeof text, "rank %d (host %s) waited %.1f s for %s in group %s",
                     c->rank, c->host, waited, what, lane->group);
            return tsr_nccl_fail(n, false, TSR_ETIMEOUT, text);
        }
        if (waited > 1e-3)
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        else
            sched_yield();
    }
}

int tsr_nccl_end(struct tsr_nccl *n, struct tsr_nccl_lane *lane, ncclResult_t rc,
                 const char *what) {
    if (rc != ncclSuccess && rc != ncclInProgress) {
        rc = (ncclResult_t)fail_call(n, true, lane, what, rc);
        pthread_mutex_unlock(&n->lock);
        return (int)rc;
    }
    pthread_mutex_unlock(&n->lock);
    return rc == ncclSuccess ? 0 : tsr_nccl_settle(n, lane, what);
}

// ---- streams and what is under way on them

int tsr_nccl_follow(struct tsr_nccl *n, struct tsr_nccl_lane *lane) {
    TSR_ASSERT(n->cuda->recording == NULL); // graphs are for devices that stand alone
    TSR_CUDA_TRY(cudaEventRecord, lane->ready, n->cuda->stream);
    TSR_CUDA_TRY(cudaStreamWaitEvent, lane->stream, lane->ready, 0);
    return 0;
}

// The lane's oldest one when that is over, else a new one.
static int take_op(struct tsr_nccl_lane *lane, struct tsr_nccl_op **out) {
    struct tsr_nccl_op *op = lane->oldest;
    if (op != NULL && op->waited && tsr_cuda_happened(op->done)) {
        lane->oldest = op->next;
        lane->newest = op->next != NULL ? lane->newest : NULL;
        *out = op;
        return 0;
    }
    op = calloc(1, sizeof *op);
    if (op == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for the books of group %s", lane->group);
    int rc = tsr_cuda_check("cudaEventCreateWithFlags",
                            cudaEventCreateWithFlags(&op->done, cudaEventDisableTiming));
    if (rc < 0)
        free(op);
    else
        *out = op;
    return rc;
}

int tsr_nccl_mark(struct tsr_nccl *n, struct tsr_nccl_lane *lane, const char *what,
                  struct tsr_nccl_op **out) {
    (void)n;
    struct tsr_nccl_op *op = NULL;
    TSR_TRY(take_op(lane, &op));
    op->what = what;
    op->begun = tsr_now();
    op->waited = false;
    op->lane = lane;
    op->next = NULL;
    *(lane->newest != NULL ? &lane->newest->next : &lane->oldest) = op;
    lane->newest = op;
    TSR_CUDA_TRY(cudaEventRecord, op->done, lane->stream);
    *out = op;
    return 0;
}

int tsr_nccl_join(struct tsr_nccl *n, struct tsr_nccl_op *op) {
    TSR_CUDA_TRY(cudaStreamWaitEvent, n->cuda->stream, op->done, 0);
    op->waited = true;
    return 0;
}

// ---- failures of what is under way

// The oldest work of a lane that isn't done, or NULL.
static const struct tsr_nccl_op *unfinished(const struct tsr_nccl_lane *lane) {
    const struct tsr_nccl_op *op = lane->oldest;
    while (op != NULL && tsr_cuda_happened(op->done))
        op = op->next;
    return op;
}

// Asks each communicator; `what`: of the failed one's work, told by the main thread only.
static int ask_all(struct tsr_nccl *n, bool main_thread) {
    for (struct tsr_nccl_lane *l = n->lanes; l; l = l->next) {
        ncclResult_t state = ncclSuccess;
        ncclResult_t rc = ncclCommGetAsyncError(l->comm, &state);
        state = rc == ncclSuccess ? state : rc;
        if (state == ncclSuccess || state == ncclInProgress)
            continue;
        const struct tsr_nccl_op *op = main_thread ? unfinished(l) : NULL;
        return fail_call(n, true, l, op != NULL ? op->what : "communication", state);
    }
    return 0;
}

int tsr_nccl_poll(struct tsr_comm *c) {
    struct tsr_nccl *n = tsr_nccl_of(c);
    if (pthread_mutex_trylock(&n->lock) != 0)
        return 0; // the main thread is in a call and sees for itself
    int rc = n->failed ? tsr_fail((enum tsr_code)n->failed, "%s", n->failure) : ask_all(n, false);
    pthread_mutex_unlock(&n->lock);
    return rc;
}

// What the others wait for began first; so the oldest work of all is what is named.
static int check_deadline(struct tsr_nccl *n) {
    const struct tsr_comm *c = n->comm;
    const struct tsr_nccl_op *late = NULL;
    for (struct tsr_nccl_lane *l = n->lanes; l; l = l->next) {
        const struct tsr_nccl_op *op = unfinished(l);
        if (op != NULL && (late == NULL || op->begun < late->begun))
            late = op;
    }
    double waited = late != NULL ? tsr_now() - late->begun : 0.0;
    if (waited <= c->timeout_s)
        return 0;
    char text[sizeof n->failure], from[32] = "the other ranks";
    if (late->lane->peer >= 0)
        snprintf(from, sizeof from, "rank %d", late->lane->peer);
    snprintf(text, sizeof text, "rank %d (host %s) waited %.1f s for %s from %s in group %s",
             c->rank, c->host, waited, late->what, from, late->lane->group);
    return tsr_nccl_fail(n, true, TSR_ETIMEOUT, text);
}

int tsr_nccl_watch(void *arg) {
    struct tsr_nccl *n = arg;
    TSR_TRY(tsr_nccl_begin(n));
    int rc = ask_all(n, true);
    if (rc == 0)
        rc = check_deadline(n);
    pthread_mutex_unlock(&n->lock);
    return rc;
}
