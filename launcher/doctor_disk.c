#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/io.h"
#include "launcher/doctor.h"
#include "launcher/units.h"

enum { BLOCK = 4 << 20, N_BLOCKS = 16 }; // 64 MiB: a try, not a benchmark

// Bytes a second of one pass over the file, fsync included when writing; negative errno.
static double pass(int fd, void *block, bool write_) {
    double begin = tsr_now();
    for (int i = 0; i < N_BLOCKS; i++) {
        off_t at = (off_t)i * BLOCK;
        ssize_t n = write_ ? pwrite(fd, block, BLOCK, at) : pread(fd, block, BLOCK, at);
        if (n != BLOCK)
            return n < 0 ? -errno : -EIO;
    }
    if (write_ && fsync(fd) < 0)
        return -errno;
    double seconds = tsr_now() - begin;
    return (double)BLOCK * N_BLOCKS / (seconds > 1e-9 ? seconds : 1e-9);
}

struct speeds {
    double buffered, direct, direct_read;
};

static void measure(struct speeds *s, const char *path, void *block) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    s->direct = s->direct_read = -EINVAL;
    s->buffered = fd < 0 ? -errno : pass(fd, block, true);
    if (fd < 0)
        return;
    close(fd);
    fd = s->buffered > 0 ? open(path, O_RDWR | O_DIRECT | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    s->direct = pass(fd, block, true);
    s->direct_read = s->direct > 0 ? pass(fd, block, false) : s->direct;
    close(fd);
}

static void say_speeds(struct tsr_doctor *d, const struct speeds *s) {
    double GB = 1e9;
    bool slow = s->buffered < 50e6;
    tsr_doctor_say(d, slow ? TSR_DOUBTFUL : TSR_GOOD, "disk",
                   slow ? "checkpoints go to run.dir: choose a faster one" : NULL,
                   "%.2f GB/s written and synced through the cache", s->buffered / GB);
    if (s->direct > 0 && s->direct_read > 0)
        tsr_doctor_say(d, TSR_GOOD, "direct I/O", NULL, "%.2f GB/s written, %.2f GB/s read",
                       s->direct / GB, s->direct_read / GB);
    else
        tsr_doctor_say(d, TSR_GOOD, "direct I/O", NULL,
                       "this file system has none; checkpoints are written through the cache");
}

void tsr_doctor_disk(struct tsr_doctor *d) {
    char name[64], path[TSR_PATH_MAX], text[32];
    struct statvfs v;
    struct speeds s;
    void *block = NULL;
    snprintf(name, sizeof name, ".tessera-doctor-%d", (int)getpid());
    if (tsr_path_join(path, d->folder, name) < 0 || posix_memalign(&block, 4096, BLOCK) != 0)
        return;
    memset(block, 0x5a, BLOCK);
    if (statvfs(d->folder, &v) == 0) {
        double avail = (double)v.f_bavail * (double)v.f_frsize;
        bool full = avail < 1e9;
        tsr_doctor_say(d, full ? TSR_DOUBTFUL : TSR_GOOD, "folder",
                       full ? "a checkpoint needs 16 bytes for each parameter" : NULL,
                       "%s: %s free", d->folder, tsr_bytes_text(text, avail));
    }
    measure(&s, path, block);
    unlink(path);
    free(block);
    if (s.buffered > 0)
        say_speeds(d, &s);
    else
        tsr_doctor_say(d, TSR_DOUBTFUL, "disk", "run it where run.dir will be, or with --folder",
                       "cannot write to %s: %s", d->folder, strerror((int)-s.buffered));
}

void tsr_doctor_clock(struct tsr_doctor *d) {
    char source[64] = "unknown";
    struct timex t = {0};
    FILE *f = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");
    if (f && !fgets(source, sizeof source, f))
        snprintf(source, sizeof source, "unknown");
    if (f)
        fclose(f);
    source[strcspn(source, "\n")] = 0;
    enum { READS = 20000 };
    double begin = tsr_now(), last = begin;
    bool back = false;
    for (int i = 0; i < READS; i++) {
        double now = tsr_now();
        back |= now < last;
        last = now;
    }
    double ns = (last - begin) / READS * 1e9;
    bool synced = adjtimex(&t) >= 0 && !(t.status & STA_UNSYNC), slow = ns > 500;
    tsr_doctor_say(d,
                   back   ? TSR_BROKEN
                   : slow ? TSR_DOUBTFUL
                          : TSR_GOOD,
                   "clock",
                   back   ? "the monotonic clock ran backwards"
                   : slow ? "a clock source like this slows timing: tsc or kvm-clock is expected"
                          : NULL,
                   "%s, %.0f ns a look, %s by NTP", source, ns,
                   synced ? "kept" : "not known to be kept");
}
