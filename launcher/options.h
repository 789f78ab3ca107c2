// Command lines: one table per command drives parsing, messages and --help.
#ifndef TSR_LAUNCHER_OPTIONS_H
#define TSR_LAUNCHER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum tsr_option_kind { TSR_OPT_FLAG, TSR_OPT_STRING, TSR_OPT_INT, TSR_OPT_REAL };

struct tsr_option {
    const char *name; // long, without dashes
    char letter;      // short, or 0
    enum tsr_option_kind kind;
    void *to;            // bool, const char *, int64_t or double
    const char *metavar; // NULL for flags
    double min, max;     // of numbers
    const char *help;
};

struct tsr_command_line {
    const char *command; // "tessera generate"
    const char *usage;   // what follows it: "MODEL_DIR -p TEXT [options]"
    const char *about;   // a sentence or two
    const struct tsr_option *options;
    int n_options;
    int min_args, max_args; // positional ones
};

// Fills the options and `args` (max_args of them, n_args given). Returns 1 when --help was printed,
// 0, or TSR_EUSAGE naming the nearest known option. "--" ends the options.
int tsr_options_parse(const struct tsr_command_line *cl, int argc, char **argv, const char **args,
                      int *n_args);

struct tsr_part {
    const char *name, *about;
    // Takes its own name as argv[0]. 0, a negative code, or, when it has reported by itself, the
    // exit code.
    int (*run)(int argc, char **argv);
};

// A command of several parts ("tessera ckpt", "Looks at …"): runs the one that argv[1] names, or
// prints help, and reports. Returns the exit code; an unknown part names the nearest known one.
int tsr_parts_run(const char *command, const char *about, const struct tsr_part *parts, int n_parts,
                  int argc, char **argv);

// Prints "tessera COMMAND: error: TEXT", for each line of the text when it has several, and returns
// the exit code of `rc`.
int tsr_report(const char *command, int rc);
// The same for what every rank finds before the ranks know each other: the first one prints it.
int tsr_report_once(const char *command, int rc);

#endif
