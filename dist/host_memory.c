#include "dist/host_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>
#include "core/arena.h"
#include "core/error.h"
#include "dist/leaves.h"
#include "kernels/cpu/pages.h"

// What a rank tells the others: an anonymous file that its process has open. It has no name that
// could outlive the processes.
struct card {
    char host[256];
    int64_t pid;
    int32_t fd;
    uint64_t n_bytes; // of the segment
    uint64_t nonce;   // at the segment's end: another machine of that name may have such a pid
};

// What stands behind a segment. It doesn't cross a page's border.
struct tail {
    uint64_t nonce;
    _Atomic uint64_t counter;
};

static size_t tail_at(size_t n_bytes) {
    return tsr_align_up(n_bytes);
}

static size_t mapped(size_t n_bytes) {
    return tail_at(n_bytes) + TSR_ALIGN;
}

static struct tail *tail_of(char *segment, size_t n_bytes) {
    _Static_assert(sizeof(struct tail) <= TSR_ALIGN, "it has its place");
    return (struct tail *)(void *)(segment + tail_at(n_bytes));
}

// A file in memory, all of it allocated: what is missing is told here, not by a signal later.
static char *map_file(int fd, size_t n) {
    if (fd < 0 || ftruncate(fd, (off_t)n) < 0)
        return NULL;
    if (fallocate(fd, 0, 0, (off_t)n) < 0 && errno != EOPNOTSUPP)
        return NULL;
    char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, n, MADV_HUGEPAGE); // advice: most systems have none for such files
    return p;
}

// The own segment. That there are no such files is no failure: then it is this process's alone.
static int make_segment(struct tsr_host_memory *m, struct card *card, bool alone) {
    const size_t n = mapped(card->n_bytes);
    char *p = NULL;
    card->fd = alone ? -1 : memfd_create("tessera-snapshot", MFD_CLOEXEC);
    if (card->fd >= 0)
        p = map_file(card->fd, n);
    else
        p = tsr_pages_map(n);
    if (!p)
        return tsr_fail(TSR_ENOMEM, "no memory for a snapshot of %" PRIu64 " bytes", card->n_bytes);
    tsr_pages_populate(p, n);
    if (getrandom(&card->nonce, sizeof card->nonce, GRND_NONBLOCK) != sizeof card->nonce)
        card->nonce = (uint64_t)getpid() << 32 ^ (uint64_t)(uintptr_t)p;
    tail_of(p, card->n_bytes)->nonce = card->nonce;
    m->shared = card->fd >= 0;
    m->at[0] = p;
    return 0;
}

// For reading, but for the page with the tail.
static char *map_fd(int fd, size_t n, size_t n_bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (mprotect(p, tail_at(n_bytes) / page * page, PROT_READ) == 0)
        return p;
    munmap(p, n);
    return NULL;
}

static char *map_other(const struct card *card) {
    char path[64];
    const size_t n = mapped(card->n_bytes);
    snprintf(path, sizeof path, "/proc/%" PRId64 "/fd/%d", card->pid, card->fd);
    int fd = card->fd >= 0 ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return NULL;
    char *p = lseek(fd, 0, SEEK_END) == (off_t)n ? map_fd(fd, n, card->n_bytes) : NULL;
    close(fd);
    if (!p)
        return NULL;
    if (tail_of(p, card->n_bytes)->nonce == card->nonce)
        return p;
    munmap(p, n);
    return NULL;
}

static void unmap_others(struct tsr_host_memory *m) {
    for (int i = 0; i < m->n; i++)
        if (i != m->mine && m->at[i])
            munmap(m->at[i], mapped(m->n_bytes[i]));
}

// Maps the segments of the ranks on this host; false when one can't be.
static bool map_all(struct tsr_host_memory *m, const struct card *cards, int world, int rank) {
    bool ok = true;
    char *own = m->at[0];
    m->n = 0;
    for (int r = 0; r < world; r++) {
        if (cards[r].pid == 0 || strcmp(cards[r].host, cards[rank].host) != 0)
            continue;
        m->n_bytes[m->n] = cards[r].n_bytes;
        if (r == rank)
            m->mine = m->n;
        m->at[m->n] = r == rank ? own : map_other(&cards[r]);
        ok = ok && m->at[m->n];
        m->n++;
    }
    return ok;
}

// True when every rank of the world says so. Collective.
static int all_agree(struct tsr_ctx *ctx, struct tsr_comm *c, bool mine, bool *all) {
    unsigned char *said = malloc((size_t)c->world);
    size_t *n_bytes = malloc((size_t)c->world * sizeof *n_bytes);
    int rc = said && n_bytes ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a snapshot");
    for (int r = 0; rc == 0 && r < c->world; r++) {
        said[r] = 1;
        n_bytes[r] = 1;
    }
    rc = tsr_agree(ctx, c, rc);
    if (rc == 0) {
        said[c->rank] = mine;
        rc = c->control->all_gather(ctx, c, &c->world_group, said, &said[c->rank], n_bytes, NULL);
    }
    *all = true;
    for (int r = 0; rc == 0 && r < c->world; r++)
        *all = *all && said[r];
    free(said);
    free(n_bytes);
    return rc;
}

static int gather_cards(struct tsr_ctx *ctx, struct tsr_comm *c, struct card *cards) {
    size_t *n_bytes = malloc((size_t)c->world * sizeof *n_bytes);
    int rc = n_bytes ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a snapshot");
    for (int r = 0; rc == 0 && r < c->world; r++)
        n_bytes[r] = sizeof *cards;
    rc = tsr_agree(ctx, c, rc);
    if (rc == 0)
        rc = c->control->all_gather(ctx, c, &c->world_group, cards, &cards[c->rank], n_bytes, NULL);
    free(n_bytes);
    return rc;
}

static int join(struct tsr_host_memory *m, struct tsr_ctx *ctx, struct tsr_comm *c,
                struct card *cards) {
    bool all;
    TSR_TRY(gather_cards(ctx, c, cards));
    bool ok = map_all(m, cards, c->world, c->rank);
    TSR_TRY(all_agree(ctx, c, ok, &all)); // from here on the files needn't be open any more
    if (!all) {
        unmap_others(m);
        m->at[0] = m->at[m->mine];
        m->n_bytes[0] = m->n_bytes[m->mine];
        m->mine = 0;
        m->n = 1;
    }
    return 0;
}

int tsr_host_memory_open(struct tsr_host_memory *m, struct tsr_ctx *ctx, struct tsr_comm *c,
                         size_t n_bytes) {
    const size_t world = (size_t)c->world;
    struct card *cards = calloc(world, sizeof *cards), *own = cards ? &cards[c->rank] : NULL;
    if (own)
        own->fd = -1;
    *m = (struct tsr_host_memory){.n = 1};
    m->at = calloc(world, sizeof *m->at);
    m->n_bytes = calloc(world, sizeof *m->n_bytes);
    int rc = cards && m->at && m->n_bytes ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a snapshot");
    if (rc == 0) {
        m->n_bytes[0] = own->n_bytes = n_bytes;
        own->pid = getpid();
        snprintf(own->host, sizeof own->host, "%s", c->host);
        rc = make_segment(m, own, c->local_size == 1);
    }
    rc = tsr_agree(ctx, c, rc);
    if (rc == 0)
        rc = join(m, ctx, c, cards);
    if (rc == 0)
        m->counter = &tail_of(m->at[0], m->n_bytes[0])->counter;
    if (own && own->fd >= 0)
        close(own->fd);
    free(cards);
    if (rc < 0)
        tsr_host_memory_close(m);
    return rc;
}

void tsr_host_memory_close(struct tsr_host_memory *m) {
    char *own = m->at && m->n_bytes ? m->at[m->mine] : NULL;
    if (own) {
        unmap_others(m);
        if (m->shared)
            munmap(own, mapped(m->n_bytes[m->mine]));
        else
            tsr_pages_unmap(own, mapped(m->n_bytes[m->mine]));
    }
    free(m->at);
    free(m->n_bytes);
    *m = (struct tsr_host_memory){0};
}
