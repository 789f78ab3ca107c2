// A program that is run to its end, or to a deadline, with what it says kept.
#ifndef TSR_LAUNCHER_CHILD_H
#define TSR_LAUNCHER_CHILD_H

#include <stdbool.h>
#include "core/io.h"

struct tsr_child {
    const char *const *argv; // ends with NULL; argv[0] is looked up in PATH
    const char *const *env;  // "NAME=VALUE" beside the own environment, or NULL
    double timeout_s;        // 0: none
};

struct tsr_child_result {
    int exit_code;      // 128 + signal when one ended it
    bool timed_out;     // and it was ended, with its descendants
    struct tsr_buf out; // standard output and standard error, the last 64 KiB; free it
};

// Runs it and waits. Whatever it leaves behind is ended. TSR_EUSAGE when there is no such program,
// TSR_ENOMEM, TSR_EIO; an exit code above 0 is no failure of this call. Main thread only.
int tsr_child_run(const struct tsr_child *c, struct tsr_child_result *out);

// argv of mpirun for `n` ranks on this machine, up to and without the program: how ranks that may
// outnumber the cores are started. Returns how many words (at most 16) stand in argv.
int tsr_mpirun_words(const char *argv[static 16], char count[static 16], int n);

// "NAME=VALUE" strings that mpirun needs: leave to run as root, where that is who runs it.
const char *const *tsr_mpirun_env(void);

// The path of this very program. TSR_EIO.
int tsr_own_program(char out[static TSR_PATH_MAX]);

#endif
