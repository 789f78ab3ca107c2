// The one binary: finds the command and hands over.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "core/io.h"
#include "core/run.h"
#include "launcher/commands.h"
#include "launcher/options.h"

static const struct {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"train", "train a model by a run file; one rank of many under mpirun", tsr_cmd_train},
    {"generate", "continue a text with a model directory", tsr_cmd_generate},
    {"eval", "loss and perplexity of a model on a text", tsr_cmd_eval},
    {"tokenizer", "train a tokenizer, encode and decode text", tsr_cmd_tokenizer},
    {"data", "build and inspect Megatron-style .bin/.idx data", tsr_cmd_data},
    {"status", "what a training run is doing right now", tsr_cmd_status},
    {"ckpt", "list, verify and compare checkpoints; what resharding reads", tsr_cmd_ckpt},
    {"plan", "memory, communication and bubble of a run, before it starts", tsr_cmd_plan},
    {"layout-check", "compare two layouts of a run, down to each gradient", tsr_cmd_layout_check},
    {"doctor", "what is installed and working on this machine", tsr_cmd_doctor},
    {"bench", "measure speed as a share of this machine's peak", tsr_cmd_bench},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void help(void) {
    printf(
        "usage: tessera COMMAND …\n\n"
        "Trains and runs decoder-only language models (the GPT series, LLaMA 1 to 3.2) over many\n"
        "processes, with the same loss to the last bit in every parallel layout.\n\ncommands:\n");
    for (int i = 0; i < N_COMMANDS; i++)
        printf("  %-13s %s\n", commands[i].name, commands[i].about);
    printf("\n`tessera COMMAND --help` has the details; `tessera --version` the version.\n\n"
           "exit codes:\n"
           "  0   done\n"
           "  2   a mistake in options, run file, model directory, data or request\n"
           "  3   out of memory, disk or another resource\n"
           "  4   a peer or host failed\n"
           "  5   interrupted, checkpoint written\n"
           "  70  a bug in tessera\n"
           "  128 + N: `tessera train` was stopped at once by signal N\n");
}

// What a command printed is there for someone: a full disk must not pass as success.
static int check_output(int code) {
    if (code != 0 || (fflush(stdout) == 0 && !ferror(stdout)))
        return code;
    tsr_fail_errno(errno, "cannot write", "standard output");
    return tsr_report("tessera", TSR_EIO);
}

static int unknown(const char *name) {
    const char *known[N_COMMANDS + 2] = {"--help", "--version"};
    for (int i = 0; i < N_COMMANDS; i++)
        known[2 + i] = commands[i].name;
    const char *near = tsr_nearest(name, known, N_COMMANDS + 2);
    if (near)
        tsr_fail(TSR_EUSAGE, "unknown command \"%s\"; the nearest is \"%s\"", name, near);
    else
        tsr_fail(TSR_EUSAGE, "unknown command \"%s\"; see tessera --help", name);
    return tsr_report_once("tessera", TSR_EUSAGE);
}

int main(int argc, char **argv) {
    signal(SIGXFSZ, SIG_IGN); // a file beyond the limit is a failed write, not a death
    if (argc < 2) {
        tsr_fail(TSR_EUSAGE, "a command is missing; see tessera --help");
        return tsr_report_once("tessera", TSR_EUSAGE);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help();
        return check_output(0);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("tessera " TESSERA_VERSION "\n");
        return check_output(0);
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return check_output(commands[i].run(argc - 1, argv + 1));
    if (strcmp(argv[1], "coordinator") == 0) // only supervisors start it
        return check_output(tsr_cmd_coordinator(argc - 1, argv + 1));
    return unknown(argv[1]);
}
