#include "launcher/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "core/run.h"
#include "dist/comm.h"

static void help(const struct tsr_command_line *cl) {
    printf("usage: %s %s\n\n%s\n\noptions:\n", cl->command, cl->usage, cl->about);
    for (int i = 0; i < cl->n_options; i++) {
        const struct tsr_option *o = &cl->options[i];
        char left[64], letter[8] = "    ";
        if (o->letter)
            snprintf(letter, sizeof letter, "-%c, ", o->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name, o->metavar ? " " : "",
                 o->metavar ? o->metavar : "");
        printf("  %-30s %s\n", left, o->help);
    }
    printf("  %-30s %s\n", "    --help", "this text");
}

static int unknown(const struct tsr_command_line *cl, const char *name, bool is_long) {
    const char *known[64];
    int n = 0;
    for (int i = 0; i < cl->n_options && n < 63; i++)
        known[n++] = cl->options[i].name;
    known[n++] = "help";
    const char *near = is_long ? tsr_nearest(name, known, n) : NULL;
    if (near)
        return tsr_fail(TSR_EUSAGE, "unknown option --%s; the nearest is --%s", name, near);
    return tsr_fail(TSR_EUSAGE, "unknown option %s%s; see %s --help", is_long ? "--" : "-", name,
                    cl->command);
}

static int set(const struct tsr_option *o, const char *value) {
    char *end;
    errno = 0;
    if (o->kind == TSR_OPT_STRING) {
        *(const char **)o->to = value;
        return 0;
    }
    double real = 0.0;
    long long whole = 0;
    if (o->kind == TSR_OPT_INT)
        real = (double)(whole = strtoll(value, &end, 10));
    else
        real = strtod(value, &end);
    if (errno != 0 || end == value || *end)
        return tsr_fail(TSR_EUSAGE, "--%s takes %s, not \"%s\"", o->name,
                        o->kind == TSR_OPT_INT ? "a whole number" : "a number", value);
    if (!(real >= o->min && real <= o->max))
        return tsr_fail(TSR_EUSAGE, "--%s must be between %.15g and %.15g, not %s", o->name, o->min,
                        o->max, value);
    if (o->kind == TSR_OPT_INT)
        *(int64_t *)o->to = whole;
    else
        *(double *)o->to = real;
    return 0;
}

static const struct tsr_option *find(const struct tsr_command_line *cl, const char *name, size_t n,
                                     char letter) {
    for (int i = 0; i < cl->n_options; i++) {
        const struct tsr_option *o = &cl->options[i];
        if (letter ? o->letter == letter : strlen(o->name) == n && strncmp(o->name, name, n) == 0)
            return o;
    }
    return NULL;
}

// One option at argv[*i], and its value, which may be the next argument.
static int take(const struct tsr_command_line *cl, int argc, char **argv, int *i) {
    const char *arg = argv[*i], *value = NULL;
    const struct tsr_option *o;
    if (arg[1] == '-') {
        const char *eq = strchr(arg, '=');
        size_t n = eq ? (size_t)(eq - arg - 2) : strlen(arg + 2);
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)n, arg + 2);
        if (strcmp(name, "help") == 0)
            return tsr_fail(TSR_EUSAGE, "--help takes no value");
        o = find(cl, name, strlen(name), 0);
        if (!o)
            return unknown(cl, name, true);
        value = eq ? eq + 1 : NULL;
    } else {
        o = find(cl, NULL, 0, arg[1]);
        if (!o)
            return unknown(cl, arg + 1, false);
        value = arg[2] ? arg + 2 : NULL;
    }
    if (o->kind == TSR_OPT_FLAG) {
        if (value)
            return tsr_fail(TSR_EUSAGE, "--%s takes no value", o->name);
        *(bool *)o->to = true;
        return 0;
    }
    if (!value && *i + 1 >= argc)
        return tsr_fail(TSR_EUSAGE, "--%s needs %s", o->name, o->metavar);
    return set(o, value ? value : argv[++*i]);
}

int tsr_options_parse(const struct tsr_command_line *cl, int argc, char **argv, const char **args,
                      int *n_args) {
    bool plain = false;
    *n_args = 0;
    for (int i = 1; i < argc; i++) {
        if (!plain && strcmp(argv[i], "--") == 0) {
            plain = true;
        } else if (!plain && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            if (tsr_comm_env_rank() == 0)
                help(cl);
            return 1;
        } else if (!plain && argv[i][0] == '-' && argv[i][1]) {
            TSR_TRY(take(cl, argc, argv, &i));
        } else if (*n_args == cl->max_args) {
            return tsr_fail(TSR_EUSAGE, "unexpected argument \"%s\"; usage: %s %s", argv[i],
                            cl->command, cl->usage);
        } else {
            args[(*n_args)++] = argv[i];
        }
    }
    if (*n_args < cl->min_args)
        return tsr_fail(TSR_EUSAGE, "an argument is missing; usage: %s %s", cl->command, cl->usage);
    return 0;
}

int tsr_report(const char *command, int rc) {
    const char *text = tsr_error_text(), *end;
    const char *wipe = tsr_log_shared_columns() > 0 ? "\r\033[K" : ""; // somebody's bar
    if (rc < 0)
        do {
            end = text + strcspn(text, "\n");
            fprintf(stderr, "%s%s: error: %.*s\n", wipe, command, (int)(end - text), text);
            text = end + 1;
        } while (*end);
    return tsr_exit_code(rc);
}

int tsr_report_once(const char *command, int rc) {
    return tsr_comm_env_rank() == 0 ? tsr_report(command, rc) : tsr_exit_code(rc);
}

enum { MAX_PARTS = 16, MAX_LIST = 200 };

// "ls, verify or diff"; with '|' between them for the usage line.
static void list_parts(char out[static MAX_LIST], const struct tsr_part *parts, int n, bool usage) {
    int at = 0;
    for (int i = 0; i < n && at < MAX_LIST; i++) {
        const char *between = usage ? "|" : i + 1 < n ? ", " : " or ";
        at += snprintf(out + at, (size_t)(MAX_LIST - at), "%s%s", i ? between : "", parts[i].name);
    }
}

static void print_parts(const char *command, const char *about, const struct tsr_part *parts,
                        int n) {
    char list[MAX_LIST];
    list_parts(list, parts, n, true);
    printf("usage: %s %s …\n\n%s\n\n", command, list, about);
    for (int i = 0; i < n; i++)
        printf("  %-8s %s\n", parts[i].name, parts[i].about);
    printf("\n`%s %s --help` and so on have the details.\n", command, parts[0].name);
}

static int unknown_part(const char *name, const char *list, const struct tsr_part *parts, int n) {
    const char *known[MAX_PARTS];
    for (int i = 0; i < n; i++)
        known[i] = parts[i].name;
    const char *near = tsr_nearest(name, known, n);
    return tsr_fail(TSR_EUSAGE, "expected %s, found \"%s\"%s%s%s", list, name,
                    near ? "; the nearest is \"" : "", near ? near : "", near ? "\"" : "");
}

int tsr_parts_run(const char *command, const char *about, const struct tsr_part *parts, int n_parts,
                  int argc, char **argv) {
    char list[MAX_LIST], full[80];
    TSR_ASSERT(n_parts <= MAX_PARTS);
    list_parts(list, parts, n_parts, false);
    if (argc < 2)
        return tsr_report_once(command, tsr_fail(TSR_EUSAGE, "expected %s", list));
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        if (tsr_comm_env_rank() == 0)
            print_parts(command, about, parts, n_parts);
        return 0;
    }
    for (int i = 0; i < n_parts; i++) {
        if (strcmp(argv[1], parts[i].name) != 0)
            continue;
        int rc = parts[i].run(argc - 1, argv + 1);
        snprintf(full, sizeof full, "%s %s", command, parts[i].name);
        return rc > 0 ? rc : tsr_report(full, rc);
    }
    return tsr_report_once(command, unknown_part(argv[1], list, parts, n_parts));
}
