// A pool of threads that run one function over [0, n) parts. The caller is thread 0. Parts are
// handed out dynamically; results never depend on who ran a part.
#ifndef TSR_KERNELS_CPU_POOL_H
#define TSR_KERNELS_CPU_POOL_H

struct tsr_pool;

struct tsr_pool *tsr_pool_open(int n_threads, const void *isa_table); // NULL: out of memory
// A pool that runs nothing and has no threads, but hands out the scratch that n_threads would need:
// what a job would allocate is found by going through its motions.
struct tsr_pool *tsr_pool_open_dry(int n_threads, const void *isa_table);
void tsr_pool_close(struct tsr_pool *p);
int tsr_pool_threads(const struct tsr_pool *p);
int tsr_pool_is_dry(const struct tsr_pool *p);
const void *tsr_pool_isa(const struct tsr_pool *p); // the table given at open

// Calls fn(arg, part, thread) for each part in [0, n_parts); returns when all are done. Spins
// briefly, then yields, then sleeps: a busy neighbour must not cripple a barrier.
void tsr_pool_run(struct tsr_pool *p, int n_parts, void (*fn)(void *arg, int part, int thread),
                  void *arg);

// Scratch of one thread, grown on demand, kept; aligned to 64 bytes. NULL: out of memory.
void *tsr_pool_scratch(struct tsr_pool *p, int thread, unsigned long n_bytes);
// Scratch that all threads share (packed panels).
void *tsr_pool_shared(struct tsr_pool *p, unsigned long n_bytes);
// Bytes of all scratch now held.
unsigned long tsr_pool_scratch_bytes(const struct tsr_pool *p);
// Adds to the count of bytes that the device's allocator has handed out, and returns it.
unsigned long tsr_pool_count(struct tsr_pool *p, long n_bytes);

#endif
