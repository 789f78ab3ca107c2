// Recorded operations: a CUDA graph, and its own memory for the host's arrays that its kernels
// read. Nothing of the host's is in the graph itself: before each launch, arrays that may have
// changed (segments with their block tables, sources of to_device) are read again from where
// they were into pinned memory, and that is copied to the device in one piece per chunk.
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend_private.h"

enum { CHUNK_BYTES = 64 << 10, ALIGNMENT = 16 };

// The same bytes on both sides.
struct chunk {
    char *host, *dev;
    size_t used, room;
};

struct place {
    char *host, *dev;
};

enum kind { STATIC, SEGMENTS, LIVE, TO_HOST }; // LIVE: read again as it is

struct array {
    enum kind kind;
    const void *src; // the host's; of TO_HOST, where it goes
    size_t n_bytes;
    int n_segs;
    struct place at, tables; // tables: of SEGMENTS
    int64_t tables_room;     // entries
};

struct tsr_cuda_graph {
    cudaGraphExec_t exec;
    cudaEvent_t copied; // the arrays of the latest launch
    struct chunk *chunks;
    int n_chunks;
    struct array *arrays;
    int n_arrays;
    bool pending; // launched, and what TO_HOST brought isn't delivered
};

static int new_chunk(struct tsr_cuda *c, struct tsr_cuda_graph *g, size_t n_bytes) {
    struct chunk *grown = realloc(g->chunks, ((size_t)g->n_chunks + 1) * sizeof *grown);
    if (grown == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for recorded operations");
    g->chunks = grown;
    struct chunk *k = &g->chunks[g->n_chunks++];
    *k = (struct chunk){.room = n_bytes > CHUNK_BYTES ? n_bytes : CHUNK_BYTES};
    TSR_CUDA_TRY(cudaHostAlloc, (void **)&k->host, k->room, cudaHostAllocDefault);
    TSR_TRY(tsr_cuda_malloc((void **)&k->dev, k->room, "the arrays of recorded operations"));
    memset(k->host, 0, k->room);
    c->scratch_bytes += k->room;
    return 0;
}

static int reserve(struct tsr_cuda *c, struct tsr_cuda_graph *g, size_t n_bytes,
                   struct place *out) {
    size_t take = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    struct chunk *k = g->n_chunks > 0 ? &g->chunks[g->n_chunks - 1] : NULL;
    if (k == NULL || k->used + take > k->room) {
        TSR_TRY(new_chunk(c, g, take));
        k = &g->chunks[g->n_chunks - 1];
    }
    *out = (struct place){k->host + k->used, k->dev + k->used};
    k->used += take;
    return 0;
}

static int add_array(struct tsr_cuda *c, struct array a, struct array **out) {
    struct tsr_cuda_graph *g = c->recording;
    struct array *grown = realloc(g->arrays, ((size_t)g->n_arrays + 1) * sizeof *grown);
    if (grown == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for recorded operations");
    g->arrays = grown;
    TSR_TRY(reserve(c, g, a.n_bytes, &a.at));
    g->arrays[g->n_arrays] = a;
    *out = &g->arrays[g->n_arrays++];
    return 0;
}

int tsr_cuda_graph_upload(struct tsr_cuda *c, const void *src, size_t n_bytes, const void **dev) {
    struct tsr_cuda_graph *g = c->recording;
    struct array *a = NULL;
    for (int i = 0; i < g->n_arrays && a == NULL; i++)
        if (g->arrays[i].kind == STATIC && g->arrays[i].n_bytes == n_bytes &&
            memcmp(g->arrays[i].at.host, src, n_bytes) == 0)
            a = &g->arrays[i];
    if (a == NULL) {
        TSR_TRY(add_array(c, (struct array){.kind = STATIC, .n_bytes = n_bytes}, &a));
        memcpy(a->at.host, src, n_bytes);
    }
    *dev = a->at.dev;
    return 0;
}

static int fill_segments(struct tsr_cuda *c, struct tsr_cuda_graph *g, struct array *a) {
    const struct tsr_segment *segs = a->src;
    struct tsr_cuda_segment *to = (struct tsr_cuda_segment *)a->at.host;
    int64_t n = 0, at = 0;
    for (int i = 0; i < a->n_segs; i++)
        n += tsr_cuda_table_length(&segs[i]);
    if (n > a->tables_room) { // sequences grow: double the room, so that this is rare
        int64_t room = 2 * n;
        TSR_TRY(reserve(c, g, (size_t)room * sizeof(int32_t), &a->tables));
        a->tables_room = room;
    }
    int32_t *host = (int32_t *)a->tables.host, *dev = (int32_t *)a->tables.dev;
    for (int i = 0; i < a->n_segs; i++) {
        int64_t len = tsr_cuda_table_length(&segs[i]);
        if (len > 0)
            memcpy(host + at, segs[i].cache->blocks, (size_t)len * sizeof *host);
        tsr_cuda_fill_segment(&to[i], &segs[i], len > 0 ? dev + at : NULL);
        at += len;
    }
    return 0;
}

int tsr_cuda_graph_segments(struct tsr_cuda *c, const struct tsr_segment *segs, int n_segs,
                            const struct tsr_cuda_segment **dev) {
    struct tsr_cuda_graph *g = c->recording;
    struct array *a = NULL;
    for (int i = 0; i < g->n_arrays && a == NULL; i++)
        if (g->arrays[i].kind == SEGMENTS && g->arrays[i].src == segs &&
            g->arrays[i].n_segs == n_segs)
            a = &g->arrays[i];
    if (a == NULL) {
        struct array fresh = {.kind = SEGMENTS,
                              .src = segs,
                              .n_segs = n_segs,
                              .n_bytes = (size_t)n_segs * sizeof(struct tsr_cuda_segment)};
        TSR_TRY(add_array(c, fresh, &a));
        TSR_TRY(fill_segments(c, g, a));
    }
    const struct tsr_cuda_segment *filled = (const struct tsr_cuda_segment *)a->at.host;
    for (int i = 0; i < n_segs; i++) // one place in memory can't be read again as two things
        TSR_ASSERT(filled[i].start == segs[i].start && filled[i].length == segs[i].length &&
                   filled[i].position == segs[i].position);
    *dev = (const struct tsr_cuda_segment *)a->at.dev;
    return 0;
}

int tsr_cuda_graph_upload_live(struct tsr_cuda *c, const void *src, size_t n_bytes,
                               const void **dev) {
    struct array *a = NULL;
    TSR_TRY(add_array(c, (struct array){.kind = LIVE, .src = src, .n_bytes = n_bytes}, &a));
    memcpy(a->at.host, src, n_bytes);
    *dev = a->at.dev;
    return 0;
}

int tsr_cuda_graph_to_device(struct tsr_cuda *c, void *dst, const void *src, size_t n_bytes) {
    const void *dev = NULL;
    if (n_bytes == 0)
        return 0;
    TSR_TRY(tsr_cuda_graph_upload_live(c, src, n_bytes, &dev));
    TSR_CUDA_TRY(cudaMemcpyAsync, dst, dev, n_bytes, cudaMemcpyDeviceToDevice, c->stream);
    return 0;
}

int tsr_cuda_graph_to_host(struct tsr_cuda *c, void *dst, const void *src, size_t n_bytes) {
    struct array *a;
    if (n_bytes == 0)
        return 0;
    TSR_TRY(add_array(c, (struct array){.kind = TO_HOST, .src = dst, .n_bytes = n_bytes}, &a));
    TSR_CUDA_TRY(cudaMemcpyAsync, a->at.dev, src, n_bytes, cudaMemcpyDeviceToDevice, c->stream);
    return 0;
}

// What the kernels read goes to the device, the graph runs, and what it has for the host comes
// back.
static int launch(struct tsr_cuda *c, struct tsr_cuda_graph *g) {
    for (int i = 0; i < g->n_chunks; i++)
        TSR_CUDA_TRY(cudaMemcpyAsync, g->chunks[i].dev, g->chunks[i].host, g->chunks[i].used,
                     cudaMemcpyHostToDevice, c->stream);
    TSR_CUDA_TRY(cudaEventRecord, g->copied, c->stream);
    TSR_CUDA_TRY(cudaGraphLaunch, g->exec, c->stream);
    for (int i = 0; i < g->n_arrays; i++) {
        const struct array *a = &g->arrays[i];
        if (a->kind != TO_HOST)
            continue;
        TSR_CUDA_TRY(cudaMemcpyAsync, a->at.host, a->at.dev, a->n_bytes, cudaMemcpyDeviceToHost,
                     c->stream);
        g->pending = true;
    }
    return 0;
}

int tsr_cuda_record(struct tsr_ctx *ctx) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    TSR_ASSERT(c->recording == NULL);
    struct tsr_cuda_graph **grown = realloc(c->graphs, ((size_t)c->n_graphs + 1) * sizeof *grown);
    if (grown == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for recorded operations");
    c->graphs = grown;
    struct tsr_cuda_graph *g = calloc(1, sizeof *g);
    if (g == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for recorded operations");
    c->graphs[c->n_graphs++] = g;
    int rc = tsr_cuda_check("cudaEventCreate",
                            cudaEventCreateWithFlags(&g->copied, cudaEventDisableTiming));
    if (rc == 0) // relaxed: memory may be allocated meanwhile
        rc = tsr_cuda_check("cudaStreamBeginCapture",
                            cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
    if (rc < 0) {
        tsr_cuda_graph_close(c, g);
        return rc;
    }
    c->recording = g;
    return 0;
}

int tsr_cuda_recorded(struct tsr_ctx *ctx, void **graph) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    struct tsr_cuda_graph *g = c->recording;
    cudaGraph_t made = NULL;
    TSR_ASSERT(g != NULL);
    c->recording = NULL;
    *graph = NULL;
    int rc = tsr_cuda_check("cudaStreamEndCapture", cudaStreamEndCapture(c->stream, &made));
    if (rc == 0)
        rc = tsr_cuda_check("cudaGraphInstantiate", cudaGraphInstantiate(&g->exec, made, 0));
    if (made != NULL)
        (void)cudaGraphDestroy(made);
    if (rc == 0)
        rc = launch(c, g);
    if (rc < 0) {
        tsr_cuda_graph_close(c, g);
        return rc;
    }
    *graph = g;
    return 0;
}

int tsr_cuda_replay(struct tsr_ctx *ctx, void *graph) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    struct tsr_cuda_graph *g = graph;
    TSR_ASSERT(c->recording == NULL);
    TSR_TRY(tsr_cuda_wait(c, g->copied, "copies of recorded operations' arrays"));
    for (int i = 0; i < g->n_arrays; i++) {
        struct array *a = &g->arrays[i];
        if (a->kind == SEGMENTS)
            TSR_TRY(fill_segments(c, g, a));
        else if (a->kind == LIVE)
            memcpy(a->at.host, a->src, a->n_bytes);
    }
    return launch(c, g);
}

void tsr_cuda_graphs_deliver(struct tsr_cuda *c) {
    for (int i = 0; i < c->n_graphs; i++) {
        struct tsr_cuda_graph *g = c->graphs[i];
        for (int k = 0; k < g->n_arrays && g->pending; k++)
            if (g->arrays[k].kind == TO_HOST)
                memcpy((void *)(uintptr_t)g->arrays[k].src, g->arrays[k].at.host,
                       g->arrays[k].n_bytes);
        g->pending = false;
    }
}

void tsr_cuda_graph_close(struct tsr_cuda *c, struct tsr_cuda_graph *g) {
    if (g == NULL)
        return;
    bool idle = tsr_cuda_idle(c);
    for (int i = 0; i < c->n_graphs; i++)
        if (c->graphs[i] == g)
            c->graphs[i] = c->graphs[--c->n_graphs];
    if (!idle)
        return;
    if (g->exec != NULL)
        (void)cudaGraphExecDestroy(g->exec);
    if (g->copied != NULL)
        (void)cudaEventDestroy(g->copied);
    for (int i = 0; i < g->n_chunks; i++) {
        c->scratch_bytes -= g->chunks[i].dev != NULL ? g->chunks[i].room : 0;
        (void)cudaFreeHost(g->chunks[i].host);
        (void)cudaFree(g->chunks[i].dev);
    }
    free(g->chunks);
    free(g->arrays);
    free(g);
}

void tsr_cuda_graph_free(struct tsr_ctx *ctx, void *graph) {
    tsr_cuda_graph_close(tsr_cuda_of(ctx), graph);
}
