// The host's small arrays on the device, and scratch.
//
// Arrays are kept by content: one that an earlier call sent is found by its hash and compared with
// the host's copy. Two halves of memory take turns. When the one in use is full the other is
// emptied, after waiting (by then for nothing) until its copies have been made; an array found in
// the older half is sent again into the newer. So pointers that an operation was given stay good
// until it is launched: one operation's arrays never fill half of a half.
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend_private.h"

enum {
    HALF_BYTES = 4 << 20,
    N_ENTRIES = 1 << 13, // of each half's table; at most half of them are taken
    MOST_PART = 4,       // an array takes at most this part of a half
    ALIGNMENT = 16
};

struct entry {
    uint64_t hash;
    size_t at, n_bytes; // n_bytes 0: none
};

struct half {
    char *host, *dev; // the same bytes; host is pinned
    size_t used;
    struct entry *table;
    int n;
    cudaEvent_t left; // when the other half's turn began
};

struct tsr_cuda_uploads {
    struct half half[2];
    size_t room; // of each half
    int now;
};

static int fill_half(struct half *h, size_t room) {
    TSR_CUDA_TRY(cudaHostAlloc, (void **)&h->host, room, cudaHostAllocDefault);
    return tsr_cuda_malloc((void **)&h->dev, room, "the arrays of operations");
}

int tsr_cuda_uploads_open(struct tsr_cuda *c) {
    struct tsr_cuda_uploads *u = c->uploads = calloc(1, sizeof *u);
    if (u == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for a device's books");
    u->room = HALF_BYTES;
    for (int i = 0; i < 2; i++) {
        struct half *h = &u->half[i];
        h->table = calloc(N_ENTRIES, sizeof *h->table);
        if (h->table == NULL)
            return tsr_fail(TSR_ENOMEM, "no memory for a device's books");
        TSR_CUDA_TRY(cudaEventCreateWithFlags, &h->left, cudaEventDisableTiming);
        TSR_TRY(fill_half(h, u->room));
        c->scratch_bytes += u->room;
    }
    return 0;
}

void tsr_cuda_uploads_close(struct tsr_cuda *c) {
    struct tsr_cuda_uploads *u = c->uploads;
    if (u == NULL)
        return;
    for (int i = 0; i < 2; i++) {
        struct half *h = &u->half[i];
        if (h->left != NULL)
            (void)cudaEventDestroy(h->left);
        (void)cudaFreeHost(h->host);
        (void)cudaFree(h->dev);
        free(h->table);
    }
    free(u);
    c->uploads = NULL;
}

int tsr_cuda_retire(struct tsr_cuda *c, void *dev) {
    void **grown = realloc(c->retired, ((size_t)c->n_retired + 1) * sizeof *grown);
    if (grown == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for a device's books");
    c->retired = grown;
    c->retired[c->n_retired++] = dev;
    return 0;
}

static uint64_t hash_of(const void *src, size_t n_bytes) {
    const unsigned char *p = src;
    uint64_t h = 0x9e3779b97f4a7c15u ^ n_bytes;
    for (; n_bytes >= 8; n_bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = (h ^ word) * 0xd6e8feb86659fd93u;
        h ^= h >> 32;
    }
    for (; n_bytes > 0; n_bytes--, p++)
        h = (h ^ *p) * 0xd6e8feb86659fd93u;
    return h ^ h >> 29;
}

// The array's entry, or the free one where it belongs.
static struct entry *find(const struct half *h, uint64_t hash, const void *src, size_t n_bytes) {
    for (size_t i = hash % N_ENTRIES;; i = (i + 1) % N_ENTRIES) {
        struct entry *e = &h->table[i];
        if (e->n_bytes == 0 || (e->hash == hash && e->n_bytes == n_bytes &&
                                memcmp(h->host + e->at, src, n_bytes) == 0))
            return e;
    }
}

static void empty(struct half *h) {
    memset(h->table, 0, N_ENTRIES * sizeof *h->table);
    h->n = 0;
    h->used = 0;
}

// The other half's turn. Its device memory is written over in the stream's order, its host memory
// once it has been copied.
static int turn(struct tsr_cuda *c) {
    struct tsr_cuda_uploads *u = c->uploads;
    TSR_CUDA_TRY(cudaEventRecord, u->half[u->now].left, c->stream);
    u->now ^= 1;
    TSR_TRY(tsr_cuda_wait(c, u->half[u->now].left, "copies of operations' arrays"));
    empty(&u->half[u->now]);
    return 0;
}

// Room for arrays of n_bytes. Kernels that are under way may still read the old memory.
static int grow(struct tsr_cuda *c, size_t n_bytes) {
    struct tsr_cuda_uploads *u = c->uploads;
    size_t room = u->room;
    while (room < n_bytes * MOST_PART)
        room *= 2;
    TSR_TRY(tsr_cuda_wait_stream(c, c->stream, "copies of operations' arrays"));
    for (int i = 0; i < 2; i++) {
        struct half *h = &u->half[i];
        TSR_TRY(tsr_cuda_retire(c, h->dev));
        (void)cudaFreeHost(h->host);
        h->host = h->dev = NULL;
        empty(h);
        TSR_TRY(fill_half(h, room));
        c->scratch_bytes += room;
    }
    u->room = room;
    return 0;
}

int tsr_cuda_upload(struct tsr_cuda *c, const void *src, size_t n_bytes, const void **dev) {
    struct tsr_cuda_uploads *u = c->uploads;
    *dev = NULL;
    if (n_bytes == 0)
        return 0;
    if (c->recording != NULL)
        return tsr_cuda_graph_upload(c, src, n_bytes, dev);
    uint64_t hash = hash_of(src, n_bytes);
    struct entry *e = find(&u->half[u->now], hash, src, n_bytes);
    if (e->n_bytes == 0) {
        size_t take = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (take * MOST_PART > u->room)
            TSR_TRY(grow(c, take));
        else if (u->half[u->now].used + take > u->room || u->half[u->now].n >= N_ENTRIES / 2)
            TSR_TRY(turn(c));
        struct half *h = &u->half[u->now];
        size_t at = h->used;
        memcpy(h->host + at, src, n_bytes);
        TSR_CUDA_TRY(cudaMemcpyAsync, h->dev + at, h->host + at, n_bytes, cudaMemcpyHostToDevice,
                     c->stream);
        e = find(h, hash, src, n_bytes);
        *e = (struct entry){hash, at, n_bytes};
        h->used += take;
        h->n++;
    }
    *dev = u->half[u->now].dev + e->at;
    return 0;
}

int tsr_cuda_upload_live(struct tsr_cuda *c, const void *src, size_t n_bytes, const void **dev) {
    *dev = NULL;
    if (c->recording != NULL && n_bytes > 0)
        return tsr_cuda_graph_upload_live(c, src, n_bytes, dev);
    return tsr_cuda_upload(c, src, n_bytes, dev);
}

int tsr_cuda_scratch(struct tsr_cuda *c, size_t n_bytes, void **dev) {
    if (n_bytes > c->scratch_room) {
        size_t room = c->scratch_room > 0 ? c->scratch_room : 1 << 16;
        while (room < n_bytes)
            room *= 2;
        if (c->scratch != NULL)
            TSR_TRY(tsr_cuda_retire(c, c->scratch));
        c->scratch = NULL;
        c->scratch_room = 0;
        TSR_TRY(tsr_cuda_malloc(&c->scratch, room, "scratch of operations"));
        c->scratch_room = room;
        c->scratch_bytes += room;
    }
    *dev = c->scratch;
    return 0;
}
