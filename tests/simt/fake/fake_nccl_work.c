// Work of the simulated NCCL: what is asked in a group becomes MPI messages when its stream comes
// to it, and is done when they have arrived. Messages are copied aside, so that MPI never touches
// device memory at a moment of its own.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/simt/fake/fake_cuda.h"
#include "tests/simt/fake/fake_nccl_private.h"

struct message {
    bool is_send;
    char *device, *copy;
    size_t n_bytes;
    int peer;
};

// All that one group asks of a communicator.
struct work {
    ncclComm_t comm;
    cudaStream_t stream;
    struct message *m;
    MPI_Request *request;
    int n, cap;
    bool started, hangs;
    float *out; // a sum over `own` and the copies of what arrives; NULL: none
    const float *own;
    size_t n_sum;
    struct work *next;
};

static _Thread_local struct {
    int depth;
    struct work *first;
    bool aborts;
} group; // that is being put together

static void start_work(struct work *w) {
    w->started = true;
    fake_cuda_begin_access();
    w->request = fake_nccl_must(calloc((size_t)w->n + 1, sizeof(MPI_Request)));
    for (int i = 0; i < w->n; i++) {
        struct message *m = &w->m[i];
        int peer = w->comm->world[m->peer], tag = w->comm->tag + 1;
        m->copy = fake_nccl_must(malloc(m->n_bytes + 1));
        if (m->is_send) {
            memcpy(m->copy, m->device, m->n_bytes);
            MPI_Isend(m->copy, (int)m->n_bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD,
                      &w->request[i]);
        } else {
            MPI_Irecv(m->copy, (int)m->n_bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD,
                      &w->request[i]);
        }
    }
    fake_cuda_end_access();
}

// In order of rank, which is not the tree's.
static void add_up(const struct work *w) {
    float *sum = fake_nccl_must(calloc(w->n_sum + 1, sizeof *sum));
    for (int r = 0; r < w->comm->size; r++) {
        const float *x = w->own;
        for (int i = 0; i < w->n; i++)
            if (!w->m[i].is_send && w->m[i].peer == r)
                x = (const float *)w->m[i].copy;
        for (size_t i = 0; i < w->n_sum; i++)
            sum[i] = r == 0 ? x[i] : sum[i] + x[i];
    }
    memcpy(w->out, sum, w->n_sum * sizeof *sum);
    free(sum);
}

static void free_work(struct work *w) {
    for (int i = 0; i < w->n; i++)
        free(w->m[i].copy);
    free(w->m);
    free(w->request);
    free(w);
}

static int run_work(void *arg) {
    struct work *w = arg;
    if (w->comm->aborted) {
        w->comm->n_queued--;
        return 1; // MPI may still use its copies
    }
    if (w->hangs)
        return 0;
    if (!w->started)
        start_work(w);
    for (int i = 0; i < w->n; i++) {
        MPI_Status status;
        int done = 0, n_bytes = 0;
        if (w->request[i] == MPI_REQUEST_NULL)
            continue;
        if (MPI_Test(&w->request[i], &done, &status) != MPI_SUCCESS)
            fake_nccl_stop("a message doesn't fit the receive that it came to");
        if (!done)
            return 0;
        if (w->m[i].is_send)
            continue;
        MPI_Get_count(&status, MPI_BYTE, &n_bytes);
        if ((size_t)n_bytes != w->m[i].n_bytes)
            fake_nccl_stop("a message is shorter than the receive that it came to");
    }
    fake_cuda_begin_access();
    for (int i = 0; i < w->n; i++)
        if (!w->m[i].is_send && w->m[i].device != NULL)
            memcpy(w->m[i].device, w->m[i].copy, w->m[i].n_bytes);
    if (w->out != NULL)
        add_up(w);
    fake_cuda_end_access();
    w->comm->n_queued--;
    free_work(w);
    return 1;
}

static struct work *work_of(ncclComm_t comm, cudaStream_t stream) {
    for (struct work *w = group.first; w != NULL; w = w->next)
        if (w->comm == comm && w->stream == stream)
            return w;
    struct work *w = fake_nccl_must(calloc(1, sizeof *w));
    *w = (struct work){.comm = comm, .stream = stream, .next = group.first};
    group.first = w;
    return w;
}

static void add_message(struct work *w, bool is_send, const void *device, size_t n_bytes,
                        int peer) {
    if (w->n == w->cap) {
        w->cap = 2 * w->cap + 8;
        w->m = fake_nccl_must(realloc(w->m, (size_t)w->cap * sizeof *w->m));
    }
    w->m[w->n++] = (struct message){
        .is_send = is_send, .device = (char *)device, .n_bytes = n_bytes, .peer = peer};
}

ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (--group.depth > 0)
        return ncclSuccess;
    struct work *all = group.first;
    group.first = NULL;
    if (all != NULL)
        fake_nccl()->operations++;
    if (fake_nccl()->die != 0 && fake_nccl()->operations >= fake_nccl()->die)
        _exit(9);
    while (all != NULL) {
        struct work *w = all;
        all = w->next;
        w->hangs = fake_nccl()->hang != 0 && fake_nccl()->operations >= fake_nccl()->hang;
        w->next = w->comm->asked;
        w->comm->asked = w;
        w->comm->state = ncclInProgress;
    }
    if (group.aborts)
        fake_nccl_abort_all();
    group.aborts = false;
    fake_nccl()->broken = fake_nccl()->broken || (fake_nccl()->error != 0 &&
                                                  fake_nccl()->operations >= fake_nccl()->error);
    return ncclInProgress;
}

void fake_nccl_launch(struct ncclComm *c) {
    while (c->asked != NULL) {
        struct work *w = c->asked;
        c->asked = w->next;
        c->n_queued++;
        fake_cuda_enqueue(w->stream, run_work, w);
    }
}

// Queued work still looks at it.
ncclResult_t ncclCommAbort(ncclComm_t c) {
    ncclGroupStart();
    c->aborted = true;
    group.aborts = true;
    return ncclGroupEnd();
}

static size_t size_of(ncclDataType_t type) {
    return type == ncclFloat ? sizeof(float) : 1;
}

// Every call is a group of its own when it stands outside of one.
static struct work *open_call(ncclComm_t comm, cudaStream_t stream) {
    if (comm->state != ncclSuccess || comm->aborted || comm->finalized)
        return NULL;
    ncclGroupStart();
    return work_of(comm, stream);
}

ncclResult_t ncclSend(const void *buf, size_t n, ncclDataType_t type, int to, ncclComm_t comm,
                      cudaStream_t stream) {
    struct work *w = open_call(comm, stream);
    if (w == NULL || to < 0 || to >= comm->size)
        return ncclInvalidUsage;
    add_message(w, true, buf, n * size_of(type), to);
    return ncclGroupEnd();
}

ncclResult_t ncclRecv(void *buf, size_t n, ncclDataType_t type, int from, ncclComm_t comm,
                      cudaStream_t stream) {
    struct work *w = open_call(comm, stream);
    if (w == NULL || from < 0 || from >= comm->size)
        return ncclInvalidUsage;
    add_message(w, false, buf, n * size_of(type), from);
    return ncclGroupEnd();
}

static ncclResult_t add_ranks(const float *in, float *out, size_t n, bool scatter, ncclComm_t comm,
                              cudaStream_t stream) {
    struct work *w = open_call(comm, stream);
    if (w == NULL)
        return ncclInvalidUsage;
    for (int r = 0; r < comm->size; r++)
        if (r != comm->rank) {
            add_message(w, true, in + (scatter ? (size_t)r * n : 0), n * sizeof *in, r);
            add_message(w, false, NULL, n * sizeof *in, r);
        }
    w->out = out;
    w->own = in + (scatter ? (size_t)comm->rank * n : 0);
    w->n_sum = n;
    return ncclGroupEnd();
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    if (type != ncclFloat || op != ncclSum)
        return ncclInvalidArgument;
    return add_ranks(in, out, n, false, comm, stream);
}

ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    if (type != ncclFloat || op != ncclSum)
        return ncclInvalidArgument;
    return add_ranks(in, out, n, true, comm, stream);
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    struct work *w = open_call(comm, stream);
    size_t n_bytes = n * size_of(type);
    if (w == NULL || in != (char *)out + (size_t)comm->rank * n_bytes)
        return ncclInvalidUsage;
    for (int r = 0; r < comm->size; r++)
        if (r != comm->rank) {
            add_message(w, true, in, n_bytes, r);
            add_message(w, false, (char *)out + (size_t)r * n_bytes, n_bytes, r);
        }
    return ncclGroupEnd();
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    struct work *w = open_call(comm, stream);
    size_t n_bytes = n * size_of(type);
    if (w == NULL || in != out)
        return ncclInvalidUsage;
    for (int r = 0; comm->rank == root && r < comm->size; r++)
        if (r != root)
            add_message(w, true, in, n_bytes, r);
    if (comm->rank != root)
        add_message(w, false, out, n_bytes, root);
    return ncclGroupEnd();
}
