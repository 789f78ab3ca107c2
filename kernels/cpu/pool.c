// One job at a time. Its state is one 64-bit word {job number, parts not yet claimed}: a thread
// claims a part by a compare-and-swap on the word, which fails when the job has changed meanwhile,
// so the caller never waits for a worker that claimed nothing (it may be descheduled). The job
// ends when as many parts have finished as it had.
#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include "core/error.h"
#include "kernels/cpu/pages.h"

enum { SPINS = 400, YIELDS = 100 }; // about 10 us and 30 us on an idle machine

typedef void part_fn(void *arg, int part, int thread);

struct scratch {
    void *mem;
    size_t n_bytes;
};

struct worker {
    struct tsr_pool *pool;
    int thread;
    pthread_t id;
};

struct tsr_pool {
    int n_threads;
    int spins; // 0 when the threads outnumber the CPUs
    bool dry;  // there are no threads, nothing runs
    unsigned long allocated;
    const void *isa;
    struct worker *workers;  // (n_threads); the caller's entry has no thread
    struct scratch *scratch; // (n_threads + 1); the last one is shared

    _Alignas(64) _Atomic uint64_t word; // job number << 32 | unclaimed parts
    _Atomic(part_fn *) fn;
    _Atomic(void *) arg;
    _Atomic int n_parts;
    _Alignas(64) _Atomic int finished;
    _Atomic int sleepers;
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
};

static uint32_t unclaimed(struct tsr_pool *p) {
    return (uint32_t)atomic_load(&p->word);
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

// Waits a little without sleeping; true as soon as `ready` is.
static bool wait_awake(struct tsr_pool *p, bool (*ready)(struct tsr_pool *)) {
    for (int i = 0; i < p->spins; i++) {
        if (ready(p))
            return true;
        relax();
    }
    for (int i = 0; i < YIELDS; i++) {
        if (ready(p))
            return true;
        sched_yield();
    }
    return ready(p);
}

static bool has_work(struct tsr_pool *p) {
    return unclaimed(p) > 0 || atomic_load(&p->stop);
}

static bool is_done(struct tsr_pool *p) {
    return atomic_load(&p->finished) == atomic_load(&p->n_parts);
}

static void run_parts(struct tsr_pool *p, int thread) {
    uint64_t word = atomic_load(&p->word);
    while ((uint32_t)word > 0) {
        part_fn *fn = atomic_load(&p->fn);
        void *arg = atomic_load(&p->arg);
        int n_parts = atomic_load(&p->n_parts);
        if (!atomic_compare_exchange_weak(&p->word, &word, word - 1))
            continue; // `word` is fresh; what was read above may belong to another job
        fn(arg, n_parts - (int)(uint32_t)word, thread);
        if (atomic_fetch_add(&p->finished, 1) + 1 == n_parts && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
        word = atomic_load(&p->word);
    }
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct tsr_pool *p = w->pool;
    while (!atomic_load(&p->stop)) {
        if (!wait_awake(p, has_work)) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleepers, 1);
            while (!has_work(p))
                pthread_cond_wait(&p->work, &p->lock);
            atomic_fetch_sub(&p->sleepers, 1);
            pthread_mutex_unlock(&p->lock);
        }
        run_parts(p, w->thread);
    }
    return NULL;
}

static void wake_sleepers(struct tsr_pool *p) {
    if (atomic_load(&p->sleepers) == 0)
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void tsr_pool_run(struct tsr_pool *p, int n_parts, void (*fn)(void *arg, int part, int thread),
                  void *arg) {
    TSR_ASSERT(n_parts >= 0);
    if (p->dry)
        return;
    if (p->n_threads == 1 || n_parts <= 1) {
        for (int i = 0; i < n_parts; i++)
            fn(arg, i, 0);
        return;
    }
    atomic_store(&p->fn, fn);
    atomic_store(&p->arg, arg);
    atomic_store(&p->n_parts, n_parts);
    atomic_store(&p->finished, 0);
    uint64_t job = (atomic_load(&p->word) >> 32) + 1;
    atomic_store(&p->word, job << 32 | (uint32_t)n_parts);
    wake_sleepers(p);
    run_parts(p, 0);
    if (wait_awake(p, is_done))
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (!is_done(p))
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

static int usable_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    return CPU_COUNT(&set);
}

static void stop_workers(struct tsr_pool *p, int n_started) {
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int t = 1; t < n_started; t++)
        pthread_join(p->workers[t].id, NULL);
}

static void destroy(struct tsr_pool *p) {
    for (int t = 0; p->scratch != NULL && t <= p->n_threads; t++)
        tsr_pages_unmap(p->scratch[t].mem, p->scratch[t].n_bytes);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->scratch);
    free(p->workers);
    free(p);
}

static struct tsr_pool *open_pool(int n_threads, int n_workers, const void *isa_table) {
    TSR_ASSERT(n_threads >= 1);
    struct tsr_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (p == NULL)
        return NULL;
    *p = (struct tsr_pool){
        .n_threads = n_threads,
        .spins = n_threads <= usable_cpus() ? SPINS : 0,
        .dry = n_workers == 0,
        .isa = isa_table,
        .workers = calloc((size_t)n_threads, sizeof *p->workers),
        .scratch = calloc((size_t)n_threads + 1, sizeof *p->scratch),
    };
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    int n_started = 1;
    if (p->workers != NULL && p->scratch != NULL) {
        for (; n_started < n_workers; n_started++) {
            struct worker *w = &p->workers[n_started];
            *w = (struct worker){.pool = p, .thread = n_started};
            if (pthread_create(&w->id, NULL, worker_main, w) != 0)
                break;
        }
    }
    if (p->workers == NULL || p->scratch == NULL || n_started < n_workers) {
        stop_workers(p, n_started);
        destroy(p);
        return NULL;
    }
    return p;
}

struct tsr_pool *tsr_pool_open(int n_threads, const void *isa_table) {
    return open_pool(n_threads, n_threads, isa_table);
}

struct tsr_pool *tsr_pool_open_dry(int n_threads, const void *isa_table) {
    return open_pool(n_threads, 0, isa_table);
}

void tsr_pool_close(struct tsr_pool *p) {
    if (p == NULL)
        return;
    stop_workers(p, p->dry ? 0 : p->n_threads);
    destroy(p);
}

int tsr_pool_threads(const struct tsr_pool *p) {
    return p->n_threads;
}

int tsr_pool_is_dry(const struct tsr_pool *p) {
    return p->dry;
}

const void *tsr_pool_isa(const struct tsr_pool *p) {
    return p->isa;
}

static void *grow(const struct tsr_pool *p, struct scratch *s, size_t n_bytes) {
    if (n_bytes > s->n_bytes || s->mem == NULL) {
        tsr_pages_unmap(s->mem, s->n_bytes);
        s->mem = tsr_pages_map(n_bytes);
        s->n_bytes = s->mem != NULL ? n_bytes : 0;
        if (p->dry) // little of it will be touched
            tsr_pages_keep_small(s->mem, n_bytes);
    }
    return s->mem;
}

void *tsr_pool_scratch(struct tsr_pool *p, int thread, unsigned long n_bytes) {
    TSR_ASSERT(thread >= 0 && thread < p->n_threads);
    return grow(p, &p->scratch[thread], n_bytes);
}

void *tsr_pool_shared(struct tsr_pool *p, unsigned long n_bytes) {
    return grow(p, &p->scratch[p->n_threads], n_bytes);
}

unsigned long tsr_pool_scratch_bytes(const struct tsr_pool *p) {
    unsigned long sum = 0;
    for (int t = 0; t <= p->n_threads; t++)
        sum += p->scratch[t].n_bytes;
    return sum;
}

unsigned long tsr_pool_count(struct tsr_pool *p, long n_bytes) {
    p->allocated += (unsigned long)n_bytes;
    return p->allocated;
}
