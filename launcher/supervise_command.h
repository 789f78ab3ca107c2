// The command line and environment that start the ranks of one incarnation.
#ifndef TSR_LAUNCHER_SUPERVISE_COMMAND_H
#define TSR_LAUNCHER_SUPERVISE_COMMAND_H

#include <stdbool.h>
#include <stdint.h>
#include "core/io.h"
#include "core/run.h"
#include "launcher/hosts.h"

struct tsr_strings { // ends with NULL
    char **items;
    int n;
};

__attribute__((format(printf, 2, 3))) int tsr_strings_add(struct tsr_strings *s, const char *fmt,
                                                          ...); // 0 or TSR_ENOMEM
void tsr_strings_free(struct tsr_strings *s);

struct tsr_rank_command {
    const char *program; // this executable, by a path that all hosts know
    const char *run_file;
    const char *const *overrides; // as the user gave them
    int n_overrides;
    struct tsr_layout3 layout;
    const struct tsr_hosts *hosts; // n 0: this machine
    const bool *host_lost;         // per host; may be NULL
    const char *scratch;           // folder for Open MPI's files on this machine, or NULL
    const char *coordinator;       // host:port
    const char *token;             // TESSERA_RUN: by it a process of this run is known
    uint64_t epoch;
};

// Whether the ranks are one process that is started without mpirun.
bool tsr_command_is_direct(const struct tsr_rank_command *c);

// argv, and what the environment needs in addition. TSR_ENOMEM.
int tsr_command_ranks(const struct tsr_rank_command *c, struct tsr_strings *argv,
                      struct tsr_strings *env);

#endif
