#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include "core/error.h"
#include "launcher/doctor.h"
#include "launcher/machine.h"
#include "launcher/units.h"

static void look_at_memory(struct tsr_doctor *d) {
    struct tsr_machine_memory m;
    char have[32], total[32];
    if (tsr_machine_memory(&m, "") < 0) {
        tsr_doctor_say(d, TSR_BROKEN, "memory", "is /proc mounted?", "%s", tsr_error_text());
        return;
    }
    bool little = m.available < (uint64_t)1 << 30;
    tsr_doctor_say(d, little ? TSR_DOUBTFUL : TSR_GOOD, "memory",
                   little ? "tessera plan says what a run needs" : NULL, "%s of %s available%s",
                   tsr_bytes_text(have, (double)m.available),
                   tsr_bytes_text(total, (double)m.total),
                   m.limited ? " (limit of the control group)" : "");
}

static void look_at_huge_pages(struct tsr_doctor *d) {
    char text[128] = "";
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (f && !fgets(text, sizeof text, f))
        text[0] = 0;
    if (f)
        fclose(f);
    text[strcspn(text, "\n")] = 0;
    bool good = strstr(text, "[always]") || strstr(text, "[madvise]");
    tsr_doctor_say(d, good ? TSR_GOOD : TSR_DOUBTFUL, "huge pages",
                   good ? NULL
                        : "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: matrix "
                          "products are faster on 2 MiB pages",
                   "transparent: %s", text[0] ? text : "not there");
}

static void look_at_limit(struct tsr_doctor *d, int resource, const char *what, const char *hint,
                          rlim_t least, bool bytes) {
    struct rlimit l;
    char text[64];
    if (getrlimit((__rlimit_resource_t)resource, &l) != 0)
        return;
    if (l.rlim_cur == RLIM_INFINITY)
        snprintf(text, sizeof text, "unlimited");
    else if (bytes)
        tsr_bytes_text(text, (double)l.rlim_cur);
    else
        snprintf(text, sizeof text, "%llu", (unsigned long long)l.rlim_cur);
    bool good = l.rlim_cur == RLIM_INFINITY || l.rlim_cur >= least;
    tsr_doctor_say(d, good ? TSR_GOOD : TSR_DOUBTFUL, what, good ? NULL : hint, "%s", text);
}

// Ranks of one host meet in windows of shared memory: half a MiB for each rank and group.
static void look_at_shared(struct tsr_doctor *d) {
    struct statvfs s;
    char size[32], free_[32];
    if (statvfs("/dev/shm", &s) != 0) {
        tsr_doctor_say(d, TSR_DOUBTFUL, "/dev/shm",
                       "mount a tmpfs there, or set TESSERA_SHM=0 (ranks then send messages)",
                       "not there");
        return;
    }
    double avail = (double)s.f_bavail * (double)s.f_frsize;
    bool little = avail < 256.0 * 1048576.0;
    tsr_doctor_say(d, little ? TSR_DOUBTFUL : TSR_GOOD, "/dev/shm",
                   little ? "docker run --shm-size=1g, or set TESSERA_SHM=0" : NULL,
                   "%s of %s free", tsr_bytes_text(free_, avail),
                   tsr_bytes_text(size, (double)s.f_blocks * (double)s.f_frsize));
}

void tsr_doctor_memory(struct tsr_doctor *d) {
    look_at_memory(d);
    look_at_huge_pages(d);
    look_at_limit(d, RLIMIT_AS, "ulimit -v", "address space is limited: ulimit -v unlimited",
                  RLIM_INFINITY, true);
    look_at_limit(d, RLIMIT_NOFILE, "ulimit -n", "ulimit -n 4096: files of weights and data", 1024,
                  false);
    look_at_limit(d, RLIMIT_MEMLOCK, "ulimit -l",
                  "ulimit -l unlimited: network cards and GPUs pin memory", 64 << 10, true);
    look_at_shared(d);
}
