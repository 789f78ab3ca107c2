#include "core/io.h"
#include "core/error.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// ENOSPC and EDQUOT are the user's to cure by making room; all else is the device's or the path's.
int tsr_fail_errno(int err, const char *doing, const char *path) {
    enum tsr_code code = err == ENOSPC || err == EDQUOT ? TSR_ENOSPC : TSR_EIO;
    return tsr_fail(code, "%s: %s: %s", path, doing, strerror(err));
}

int tsr_path_join(char out[static TSR_PATH_MAX], const char *a, const char *b) {
    size_t n_a = b[0] == '/' ? 0 : strlen(a), n_b = strlen(b);
    while (n_a > 1 && n_b > 0 && a[n_a - 1] == '/')
        n_a--; // the one '/' is written below; the root keeps its own
    size_t slash = n_a > 0 && n_b > 0 && a[n_a - 1] != '/';
    if (n_a + slash + n_b >= TSR_PATH_MAX)
        return tsr_fail(TSR_EUSAGE,
                        "path is too long: expected at most %d bytes, found %zu: %.200s…",
                        TSR_PATH_MAX - 1, n_a + slash + n_b, b);
    memmove(out + n_a + slash, b, n_b); // first b, then a: `out` may be either of them
    if (out != a)
        memmove(out, a, n_a);
    if (slash)
        out[n_a] = '/';
    out[n_a + slash + n_b] = 0;
    return 0;
}

int tsr_path_dir(char out[static TSR_PATH_MAX], const char *path) {
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= TSR_PATH_MAX)
        return tsr_fail(TSR_EUSAGE, "path is too long: expected at most %d bytes, found %zu",
                        TSR_PATH_MAX - 1, strlen(path));
    while (n > 0 && path[n - 1] == '/')
        n--;
    if (n > 0)
        memmove(out, path, n);
    else
        out[n++] = slash ? '/' : '.';
    out[n] = 0;
    return 0;
}

const char *tsr_path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool tsr_path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

bool tsr_path_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int mkdir_one(const char *path) {
    if (mkdir(path, 0777) == 0)
        return 0;
    int err = errno; // EEXIST, but also EROFS or EACCES on a parent that is there already
    if (tsr_path_is_dir(path))
        return 0;
    if (err == EEXIST)
        return tsr_fail(TSR_EIO, "%s: expected a folder, found a file of that name", path);
    return tsr_fail_errno(err, "cannot make the folder", path);
}

int tsr_mkdir_p(const char *path) {
    char p[TSR_PATH_MAX];
    size_t n = strlen(path);
    if (n >= sizeof p)
        return tsr_fail(TSR_EUSAGE, "path is too long: expected at most %d bytes, found %zu",
                        TSR_PATH_MAX - 1, n);
    memcpy(p, path, n + 1);
    for (size_t i = 1; i < n; i++) {
        if (p[i] != '/' || p[i - 1] == '/')
            continue;
        p[i] = 0;
        int rc = mkdir_one(p);
        p[i] = '/';
        TSR_TRY(rc);
    }
    return mkdir_one(p);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st;
    (void)at;
    int rc = kind == FTW_DP || kind == FTW_DNR ? rmdir(path) : unlink(path);
    if (rc == 0 || errno == ENOENT) // another process may be removing the same tree
        return 0;
    if (kind == FTW_DNR) // what is in it can't even be listed
        errno = EACCES;
    return tsr_fail_errno(errno, "cannot remove", path);
}

int tsr_remove_tree(const char *path) {
    int rc = nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (rc == -1 && errno != ENOENT)
        return tsr_fail_errno(errno, "cannot remove", path);
    return rc == -1 ? 0 : rc;
}
