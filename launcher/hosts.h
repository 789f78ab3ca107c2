// The hosts of a run and how many ranks each takes, from --hosts or from Slurm.
#ifndef TSR_LAUNCHER_HOSTS_H
#define TSR_LAUNCHER_HOSTS_H

#include <stdbool.h>
#include <stdint.h>
#include "core/io.h"

enum { TSR_HOST_NAME = 256, TSR_MAX_HOSTS = 8192, TSR_MAX_SLOTS = 1 << 20 };

struct tsr_host {
    char name[TSR_HOST_NAME]; // letters, digits, dots, dashes, underscores
    int64_t slots;            // ranks, at least 1
};

struct tsr_hosts {
    struct tsr_host *items;
    int n;
};

void tsr_hosts_free(struct tsr_hosts *h);

// "h1:8,h2:8"; a host without a number takes one rank. TSR_EUSAGE: empty, malformed, twice the
// same.
int tsr_hosts_parse(struct tsr_hosts *h, const char *text);

// The names of a Slurm node list, "gpu[01-03,7],login" or "rack[1-2]n[0-3]-ib", one slot each, in
// the order written. Brackets hold numbers and ranges; a range keeps the width of its first number.
// TSR_EUSAGE.
int tsr_hosts_parse_slurm(struct tsr_hosts *h, const char *nodelist);
// Slots from SLURM_TASKS_PER_NODE: "8", "2(x3),1". It must have as many entries as there are hosts.
int tsr_hosts_slurm_slots(struct tsr_hosts *h, const char *tasks_per_node);
// The hosts of the Slurm job that this process is in: SLURM_JOB_NODELIST, expanded by scontrol when
// it is there, and SLURM_TASKS_PER_NODE. None (and 0) outside of a job and in one of a single node.
int tsr_hosts_from_slurm(struct tsr_hosts *h);

int64_t tsr_hosts_slots(const struct tsr_hosts *h);
// What mpirun's --host takes: "h1:8,h2:8", appended to `out`; those with skip[i] are left out.
int tsr_hosts_format(const struct tsr_hosts *h, const bool *skip, struct tsr_buf *out);

// Whether a name means this machine: "localhost", an address of it in numbers, or its own name up
// to the first dot.
bool tsr_host_is_here(const char *name);
bool tsr_hosts_are_here(const struct tsr_hosts *h); // all of them

#endif
