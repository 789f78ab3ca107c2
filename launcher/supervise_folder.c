// What the supervisor keeps on disks: its lock in the run directory, a folder for Open MPI's files,
// and the newest step committed.
#include "launcher/supervise_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/checkpoint.h"
#include "core/clock.h"
#include "core/error.h"

#define LOCK_S 3.0 // for an earlier supervisor that was killed a moment ago

static bool never(struct tsr_super *s) {
    (void)s;
    return false;
}

static int lock_held(int fd, const char *run_dir) {
    char who[300] = "";
    ssize_t n = pread(fd, who, sizeof who - 1, 0);
    who[n > 0 ? n : 0] = 0;
    who[strcspn(who, "\n")] = 0;
    return tsr_fail(TSR_EUSAGE, "%s is being trained already, by %s", run_dir,
                    who[0] ? who : "another process");
}

// Two supervisors of one run would fence each other off for ever. The lock goes with the process,
// however that ends; a file system without locks is the user's own risk.
int tsr_super_lock(struct tsr_super *s) {
    const char *run_dir = s->opt->run->run.dir;
    char path[TSR_PATH_MAX], host[TSR_HOST_NAME] = "", text[300];
    TSR_TRY(tsr_path_join(path, run_dir, "coordinator"));
    TSR_TRY(tsr_mkdir_p(path));
    TSR_TRY(tsr_path_join(path, path, "supervisor"));
    s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->lock < 0)
        return tsr_fail_errno(errno, "cannot create", path);
    int held;
    for (double end = tsr_now() + LOCK_S; (held = flock(s->lock, LOCK_EX | LOCK_NB)) < 0;) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            break;
        if (tsr_now() > end || tsr_super_must_end(s))
            return lock_held(s->lock, run_dir);
        tsr_super_wait(s, never, 0.05);
    }
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "process %ld on %s\n", (long)getpid(), host);
    if (ftruncate(s->lock, 0) < 0)
        return tsr_fail_errno(errno, "cannot write", path);
    return tsr_pwrite_all(s->lock, text, (size_t)n, 0, path);
}

// Open MPI leaves its shared memory and session files behind when it is killed. In a folder of this
// run they are found again, by the next start at the latest: its name is the run's token.
int tsr_super_scratch(struct tsr_super *s) {
    static const char *const bases[] = {"/dev/shm", "/tmp"};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        snprintf(s->scratch, sizeof s->scratch, "%s/tessera-%s", bases[i], s->token);
        if (tsr_remove_tree(s->scratch) == 0 && mkdir(s->scratch, 0700) == 0)
            return 0;
    }
    s->scratch[0] = 0;
    return 0; // Open MPI finds its own place
}

int64_t tsr_super_committed(const struct tsr_super *s) {
    char dir[TSR_PATH_MAX];
    int64_t step = 0;
    return tsr_checkpoint_latest(s->opt->run->run.dir, INT64_MAX, &step, dir) == 1 ? step : 0;
}
