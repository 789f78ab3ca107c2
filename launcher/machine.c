#include "launcher/machine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/io.h"

int64_t tsr_machine_value(const char *path, const char *key) {
    char line[512];
    int64_t value = -1;
    size_t n = strlen(key);
    FILE *f = fopen(path, "r");
    while (f && value < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, key, n) == 0 && (line[n] == ':' || line[n] == ' '))
            value = strtoll(line + n + 1, NULL, 10);
    if (f)
        fclose(f);
    return value;
}

int tsr_machine_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// ---- control groups

// A controller's folder of this process: "" when there is none. Version 1 has a tree for each
// controller, version 2 one for all.
struct group {
    char base[256];          // of the tree
    char path[TSR_PATH_MAX]; // below it, "" or "/a/b"
    bool v1;
};

static bool has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *p = list; (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ',') && (p[n] == ',' || p[n] == 0))
            return true;
    return false;
}

// Lines of /proc/self/cgroup: "NUMBER:CONTROLLERS:PATH"; version 2's number is 0 and its list of
// controllers empty.
static bool find_group(struct group *g, const char *root, const char *controller, bool v1) {
    char path[TSR_PATH_MAX], line[TSR_PATH_MAX];
    bool found = false;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *list = strchr(line, ':'), *at = list ? strchr(list + 1, ':') : NULL;
        if (!at)
            continue;
        *at = 0;
        found = v1 ? has_word(list + 1, controller) : list[1] == 0;
        snprintf(g->path, sizeof g->path, "%s", strcmp(at + 1, "/") == 0 ? "" : at + 1);
    }
    if (f)
        fclose(f);
    snprintf(g->base, sizeof g->base, "%s/sys/fs/cgroup%s%s", root, v1 ? "/" : "",
             v1 ? controller : "");
    g->v1 = v1;
    return found;
}

// A number of a group's file; -1: absent, or "max".
static int64_t number_of(const struct group *g, const char *file) {
    char path[2 * TSR_PATH_MAX], text[64];
    int64_t value = -1;
    snprintf(path, sizeof path, "%s%s/%s", g->base, g->path, file);
    FILE *f = fopen(path, "r");
    if (f && fgets(text, sizeof text, f) && text[0] >= '0' && text[0] <= '9')
        value = strtoll(text, NULL, 10);
    if (f)
        fclose(f);
    return value;
}

// To the group above; false at the top. A container may see its own group as the top of the tree
// although the path says otherwise: what isn't there is passed over.
static bool rise(struct group *g) {
    char *slash = strrchr(g->path, '/');
    if (!slash)
        return false;
    *slash = 0;
    return true;
}

// What may still be used in one group; UINT64_MAX: no limit. The cache of files gives way.
static uint64_t room_of(const struct group *g) {
    char stat[2 * TSR_PATH_MAX];
    int64_t limit = number_of(g, g->v1 ? "memory.limit_in_bytes" : "memory.max");
    int64_t used = number_of(g, g->v1 ? "memory.usage_in_bytes" : "memory.current");
    if (limit < 0 || used < 0)
        return UINT64_MAX;
    snprintf(stat, sizeof stat, "%s%s/memory.stat", g->base, g->path);
    int64_t cache = tsr_machine_value(stat, g->v1 ? "total_inactive_file" : "inactive_file");
    used -= cache > 0 && cache < used ? cache : 0;
    return limit > used ? (uint64_t)(limit - used) : 0;
}

int tsr_machine_memory(struct tsr_machine_memory *out, const char *root) {
    char path[TSR_PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    int64_t total = tsr_machine_value(path, "MemTotal");
    int64_t available = tsr_machine_value(path, "MemAvailable");
    if (total < 0 || available < 0)
        return tsr_fail(TSR_EIO, "%s: expected MemTotal and MemAvailable, found none", path);
    *out = (struct tsr_machine_memory){(uint64_t)total * 1024, (uint64_t)available * 1024, false};
    for (int v1 = 0; v1 < 2; v1++) {
        struct group g;
        if (!find_group(&g, root, "memory", v1))
            continue;
        do {
            uint64_t room = room_of(&g);
            if (room >= out->available)
                continue;
            out->available = room;
            out->limited = true;
        } while (rise(&g));
    }
    return 0;
}

// "QUOTA PERIOD" in version 2, two files in version 1; microseconds.
static double quota_of(const struct group *g) {
    char path[2 * TSR_PATH_MAX];
    double quota = -1, period = 0;
    if (g->v1) {
        quota = (double)number_of(g, "cpu.cfs_quota_us");
        period = (double)number_of(g, "cpu.cfs_period_us");
    } else {
        snprintf(path, sizeof path, "%s%s/cpu.max", g->base, g->path);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%lf %lf", &quota, &period) != 2)
            quota = -1;
        if (f)
            fclose(f);
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

double tsr_machine_cpu_quota(const char *root) {
    double least = 0;
    for (int v1 = 0; v1 < 2; v1++) {
        struct group g;
        if (!find_group(&g, root, "cpu", v1))
            continue;
        do {
            double q = quota_of(&g);
            if (q > 0 && (least == 0 || q < least))
                least = q;
        } while (rise(&g));
    }
    return least;
}
