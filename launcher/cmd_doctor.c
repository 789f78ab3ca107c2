#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "launcher/commands.h"
#include "launcher/doctor.h"
#include "launcher/json_out.h"
#include "launcher/options.h"

static void print_line(const struct tsr_doctor *d, enum tsr_health h, const char *what,
                       const char *text, const char *hint) {
    static const char *const plain[] = {"ok  ", "warn", "FAIL"};
    static const char *const marks[] = {"\033[32m✓\033[0m", "\033[33m!\033[0m",
                                        "\033[1;31m✗\033[0m"};
    if (d->colour) {
        printf(" %s \033[1m%-16s\033[0m %s\n", marks[h], what, text);
        if (hint)
            printf("   %16s \033[2m%s\033[0m\n", "", hint);
    } else {
        printf("%s  %-16s %s\n", plain[h], what, text);
        if (hint)
            printf("      %16s %s\n", "hint:", hint);
    }
    fflush(stdout); // some checks take a second
}

void tsr_doctor_say(struct tsr_doctor *d, enum tsr_health h, const char *what, const char *hint,
                    const char *fmt, ...) {
    static const char *const names[] = {"ok", "warn", "fail"};
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    d->n[h]++;
    if (!d->json) {
        print_line(d, h, what, text, hint);
        return;
    }
    json_array_append_new(d->lines, json_pack("{s:s, s:s, s:s, s:s?}", "check", what, "state",
                                              names[h], "text", text, "hint", hint));
}

static int print_json(struct tsr_doctor *d) {
    json_t *o = json_pack("{s:O, s:i, s:i, s:i}", "checks", d->lines, "ok", d->n[TSR_GOOD], "warn",
                          d->n[TSR_DOUBTFUL], "fail", d->n[TSR_BROKEN]);
    return tsr_print_json(o);
}

static void print_sum(const struct tsr_doctor *d) {
    if (d->n[TSR_BROKEN])
        printf("\n%d thing%s that tessera needs %s not working\n", d->n[TSR_BROKEN],
               d->n[TSR_BROKEN] == 1 ? "" : "s", d->n[TSR_BROKEN] == 1 ? "is" : "are");
    else if (d->n[TSR_DOUBTFUL])
        printf("\nwhat tessera needs is working; %d hint%s above\n", d->n[TSR_DOUBTFUL],
               d->n[TSR_DOUBTFUL] == 1 ? "" : "s");
    else
        printf("\nall is well\n");
}

int tsr_cmd_doctor(int argc, char **argv) {
    int n_args;
    struct tsr_doctor d = {.folder = "."};
    const struct tsr_option options[] = {
        {"folder", 0, TSR_OPT_STRING, &d.folder, "DIR", 0, 0,
         "where to try the disk (the current folder)"},
        {"json", 0, TSR_OPT_FLAG, &d.json, NULL, 0, 0, "one JSON object"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera doctor",
        .usage = "[options]",
        .about =
            "Looks at what tessera needs on this machine and whether it works: cores and their\n"
            "measured peak, memory and limits, Open MPI (two ranks are started), GPUs, NCCL,\n"
            "the disk, the clock. Exit code 3 when something that tessera needs doesn't work.",
        .options = options,
        .n_options = sizeof options / sizeof *options};
    if (argc == 2 && strcmp(argv[1], "--rank") == 0)
        return tsr_doctor_rank();
    int rc = tsr_options_parse(&cl, argc, argv, NULL, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report(cl.command, rc);
    if (!tsr_path_is_dir(d.folder))
        return tsr_report(cl.command,
                          tsr_fail(TSR_EUSAGE, "--folder %s: expected a folder, found %s", d.folder,
                                   tsr_path_exists(d.folder) ? "a file" : "nothing"));
    d.colour = isatty(1) && !getenv("NO_COLOR");
    d.lines = json_array();
    tsr_doctor_cpu(&d);
    tsr_doctor_memory(&d);
    tsr_doctor_mpi(&d);
    tsr_doctor_gpu(&d);
    tsr_doctor_disk(&d);
    tsr_doctor_clock(&d);
    if (d.json)
        rc = print_json(&d);
    else
        print_sum(&d);
    json_decref(d.lines);
    if (rc < 0)
        return tsr_report(cl.command, rc);
    return d.n[TSR_BROKEN] ? tsr_exit_code(TSR_EIO) : 0;
}
