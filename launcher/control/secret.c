#include "launcher/control/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <openssl/crypto.h>
#include "core/error.h"
#include "core/io.h"

enum { N_DIGITS = 2 * TSR_SECRET };

int tsr_random_bytes(void *out, size_t n_bytes) {
    uint8_t *p = out;
    while (n_bytes > 0) {
        ssize_t n = getrandom(p, n_bytes, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return tsr_fail_errno(n < 0 ? errno : EIO, "cannot draw", "random bytes");
        p += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse(uint8_t out[static TSR_SECRET], const char *text, size_t n, const char *path) {
    if (n != N_DIGITS + 1 || text[N_DIGITS] != '\n')
        return tsr_fail(TSR_EDATA, "%s: expected a key of %d hexadecimal digits and a newline",
                        path, N_DIGITS);
    for (int i = 0; i < TSR_SECRET; i++) {
        const int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return tsr_fail(TSR_EDATA, "%s: expected only digits 0-9 and a-f in the key", path);
        out[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

// The mode is that of the very file that is read, not of a name that may change in between.
static int check_file(int fd, const char *path) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", path);
    if (!S_ISREG(st.st_mode))
        return tsr_fail(TSR_EDATA, "%s: expected a key file, found something else", path);
    if (st.st_mode & 077)
        return tsr_fail(TSR_EUSAGE,
                        "%s: the key must be for its owner only: expected mode 0600, found %04o",
                        path, (unsigned)(st.st_mode & 07777));
    return 0;
}

static int read_key(uint8_t out[static TSR_SECRET], int fd, const char *path) {
    char text[N_DIGITS + 2]; // one more than a key has
    size_t n = 0;
    TSR_TRY(check_file(fd, path));
    while (n < sizeof text) {
        ssize_t got = read(fd, text + n, sizeof text - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return tsr_fail_errno(errno, "cannot read", path);
        if (got == 0)
            break;
        n += (size_t)got;
    }
    int rc = parse(out, text, n, path);
    OPENSSL_cleanse(text, sizeof text);
    return rc;
}

int tsr_secret_load(uint8_t out[static TSR_SECRET], const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not hold us up
    if (fd < 0)
        return tsr_fail(TSR_EUSAGE, "%s: cannot open the run's key: %s", path, strerror(errno));
    int rc = read_key(out, fd, path);
    close(fd);
    return rc;
}

static int write_key(int fd, const char *path) {
    static const char digits[] = "0123456789abcdef";
    uint8_t key[TSR_SECRET];
    char text[N_DIGITS + 1];
    TSR_TRY(tsr_random_bytes(key, sizeof key));
    for (int i = 0; i < TSR_SECRET; i++) {
        text[2 * i] = digits[key[i] >> 4];
        text[2 * i + 1] = digits[key[i] & 15];
    }
    text[N_DIGITS] = '\n';
    int rc = fchmod(fd, 0600) < 0 ? tsr_fail_errno(errno, "cannot set the mode of", path) : 0;
    if (rc == 0)
        rc = tsr_write_all(fd, text, sizeof text, path);
    if (rc == 0 && fsync(fd) < 0)
        rc = tsr_fail_errno(errno, "cannot sync", path);
    OPENSSL_cleanse(key, sizeof key);
    OPENSSL_cleanse(text, sizeof text);
    return rc;
}

// The key is whole before it has its name, and link() gives it only when nobody was faster. (File
// systems without hard links have no modes either.)
static int create(const char *path, const char *dir) {
    char tmp[TSR_PATH_MAX];
    if (snprintf(tmp, sizeof tmp, "%s.XXXXXX", path) >= (int)sizeof tmp)
        return tsr_fail(TSR_EUSAGE, "path is too long: %.200s…", path);
    int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot create", tmp);
    int rc = write_key(fd, tmp);
    if (close(fd) < 0 && rc == 0)
        rc = tsr_fail_errno(errno, "cannot write", tmp);
    if (rc == 0 && link(tmp, path) < 0 && errno != EEXIST)
        rc = tsr_fail_errno(errno, "cannot create", path);
    unlink(tmp);
    return rc == 0 ? tsr_fsync_path(dir) : rc;
}

int tsr_secret_create(const char *path) {
    char dir[TSR_PATH_MAX];
    uint8_t key[TSR_SECRET];
    TSR_TRY(tsr_path_dir(dir, path));
    if (!tsr_path_exists(path)) {
        TSR_TRY(tsr_mkdir_p(dir));
        TSR_TRY(create(path, dir));
    }
    int rc = tsr_secret_load(key, path);
    OPENSSL_cleanse(key, sizeof key);
    return rc;
}
