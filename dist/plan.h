// What every rank of a run will hold, found without holding it: each rank opens the very trainer
// that a run opens and goes through one step, on a device that only reserves address space and a
// transport that only counts. Ranks of equal shape are planned once.
#ifndef TSR_DIST_PLAN_H
#define TSR_DIST_PLAN_H

#include "dist/memory.h"

struct tsr_plan_opt {
    const char *isa; // of the CPU backend; NULL: the best
    int threads;     // of each rank
    int per_host;    // ranks on a host, in order
    bool nccl;       // devices that send by themselves
};

// Ranks of equal shape.
struct tsr_plan_class {
    int first, n_ranks; // the lowest of them, how many
    struct tsr_memory memory;
    size_t total;
    void *shape; // what makes them equal
    size_t shape_bytes;
};

struct tsr_plan {
    struct tsr_mesh mesh; // of rank 0
    int n_classes;
    struct tsr_plan_class *classes; // in order of their first rank
    int *class_of;                  // (world)
};

// Whether a run asks for a CUDA device, as far as its file tells (`auto` may find one). What such a
// device's operations keep for themselves isn't known before it is open: `kernels` is then 0.
bool tsr_plan_on_device(const struct tsr_run *run);

// Plans `run` over tp x pp x dp ranks (`mesh` with its chunks, V and W; its rank doesn't matter).
// TSR_ENOMEM; TSR_ECONFIG for what a run would refuse.
int tsr_plan_open(struct tsr_plan *p, const struct tsr_run *run, const struct tsr_model *m,
                  const struct tsr_mesh *mesh, const struct tsr_plan_opt *opt);
void tsr_plan_close(struct tsr_plan *p);

// Bytes of one rank alone, by the same means. `sent`: its bytes per step by kind, or NULL.
int tsr_plan_rank(struct tsr_memory *out, uint64_t sent[TSR_N_TRAFFIC], const struct tsr_run *run,
                  const struct tsr_model *m, const struct tsr_mesh *mesh, int rank,
                  const struct tsr_plan_opt *opt);

// The class with most bytes a rank.
const struct tsr_plan_class *tsr_plan_largest(const struct tsr_plan *p);

#endif
