#include "launcher/epoch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/io.h"

enum { MAX_SMALL_FILE = 4096 };

static int path_of(char out[static TSR_PATH_MAX], const char *run_dir, const char *name) {
    TSR_TRY(tsr_path_join(out, run_dir, "coordinator"));
    return tsr_path_join(out, out, name);
}

// A whole number that fits 64 bits, in decimal, and nothing else but one newline.
static int parse_epoch(const char *path, const char *text, size_t n, uint64_t *out) {
    size_t digits = strspn(text, "0123456789");
    errno = 0;
    uint64_t v = strtoull(text, NULL, 10);
    if (digits == 0 || digits + (text[digits] == '\n') != n || errno != 0 || v == UINT64_MAX)
        return tsr_fail(TSR_EDATA, "%s: expected a whole number, found \"%.40s\"", path, text);
    *out = v;
    return 0;
}

int tsr_epoch_read(const char *run_dir, uint64_t *epoch) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    *epoch = 0;
    TSR_TRY(path_of(path, run_dir, "epoch"));
    if (!tsr_path_exists(path))
        return 0;
    TSR_TRY(tsr_read_file(path, MAX_SMALL_FILE, TSR_EDATA, &text, &n));
    int rc = parse_epoch(path, text, n, epoch);
    free(text);
    return rc;
}

// Some file systems of clusters have no locks: there the user must not start a run twice at once.
static int lock(const char *path, int *fd) {
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*fd < 0)
        return tsr_fail_errno(errno, "cannot create", path);
    int rc;
    do
        rc = flock(*fd, LOCK_EX);
    while (rc < 0 && errno == EINTR);
    if (rc == 0 || errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP)
        return 0;
    rc = tsr_fail_errno(errno, "cannot lock", path);
    close(*fd);
    return rc;
}

static int take_locked(const char *run_dir, uint64_t *epoch) {
    char path[TSR_PATH_MAX], text[32];
    uint64_t old;
    TSR_TRY(tsr_epoch_read(run_dir, &old));
    TSR_TRY(path_of(path, run_dir, "epoch"));
    int n = snprintf(text, sizeof text, "%" PRIu64 "\n", old + 1);
    TSR_TRY(tsr_write_file_durable(path, text, (size_t)n));
    *epoch = old + 1;
    return 0;
}

int tsr_epoch_take(const char *run_dir, uint64_t *epoch) {
    char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
    int fd;
    TSR_TRY(tsr_path_join(dir, run_dir, "coordinator"));
    TSR_TRY(tsr_mkdir_p(dir));
    TSR_TRY(tsr_fsync_path(run_dir));
    TSR_TRY(path_of(path, run_dir, "key"));
    TSR_TRY(tsr_secret_create(path));
    TSR_TRY(path_of(path, run_dir, "lock"));
    TSR_TRY(lock(path, &fd));
    int rc = take_locked(run_dir, epoch);
    close(fd);
    return rc;
}

int tsr_epoch_check(const char *run_dir, uint64_t epoch) {
    uint64_t now;
    TSR_TRY(tsr_epoch_read(run_dir, &now));
    if (now == epoch)
        return 0;
    if (now < epoch)
        return tsr_fail(TSR_EUSAGE, "%s: epoch %" PRIu64 " was never taken, the newest is %" PRIu64,
                        run_dir, epoch, now);
    return tsr_fail(TSR_EPEER,
                    "%s: this is incarnation %" PRIu64 " of the run, and incarnation %" PRIu64
                    " has taken over",
                    run_dir, epoch, now);
}

int tsr_run_key(const char *run_dir, uint8_t secret[static TSR_SECRET]) {
    char path[TSR_PATH_MAX];
    TSR_TRY(path_of(path, run_dir, "key"));
    return tsr_secret_load(secret, path);
}

int tsr_address_write(const char *run_dir, const struct tsr_address *a) {
    char path[TSR_PATH_MAX];
    TSR_TRY(path_of(path, run_dir, "address"));
    json_t *o =
        json_pack("{s:s, s:i, s:i, s:I, s:I}", "host", a->host, "port", a->port, "metrics_port",
                  a->metrics_port, "pid", (json_int_t)a->pid, "epoch", (json_int_t)a->epoch);
    char *text = o ? json_dumps(o, 0) : NULL;
    json_decref(o);
    if (!text)
        return tsr_fail(TSR_ENOMEM, "%s: no memory to write it", path);
    int rc = tsr_write_file_durable(path, text, strlen(text));
    free(text);
    return rc;
}

// A whole number of the object, between 0 and max.
static bool whole(const json_t *o, const char *key, json_int_t max, json_int_t *out) {
    const json_t *v = json_object_get(o, key);
    *out = json_integer_value(v);
    return json_is_integer(v) && *out >= 0 && *out <= max;
}

static int parse_address(const char *path, const char *text, size_t n, struct tsr_address *a) {
    json_int_t port, metrics, pid, epoch;
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    const char *host = json_string_value(json_object_get(o, "host"));
    bool ok = host && host[0] && strlen(host) < sizeof a->host && whole(o, "port", 65535, &port) &&
              whole(o, "metrics_port", 65535, &metrics) && whole(o, "pid", INT_MAX, &pid) &&
              whole(o, "epoch", LLONG_MAX, &epoch);
    if (ok) {
        snprintf(a->host, sizeof a->host, "%s", host);
        a->port = (int)port;
        a->metrics_port = (int)metrics;
        a->pid = pid;
        a->epoch = (uint64_t)epoch;
    }
    json_decref(o);
    return ok ? 1
              : tsr_fail(TSR_EDATA,
                         "%s: expected {host, port, metrics_port, pid, epoch}, found \"%.100s\"",
                         path, text);
}

int tsr_address_read(const char *run_dir, struct tsr_address *a) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    TSR_TRY(path_of(path, run_dir, "address"));
    if (!tsr_path_exists(path))
        return 0;
    TSR_TRY(tsr_read_file(path, MAX_SMALL_FILE, TSR_EDATA, &text, &n));
    int rc = parse_address(path, text, n, a);
    free(text);
    return rc;
}

int tsr_address_parse(const char *text, struct tsr_address *a) {
    const char *colon = strrchr(text, ':'), *begin = text, *end = colon;
    if (colon && text[0] == '[' && colon > text + 1 && colon[-1] == ']') {
        begin = text + 1;
        end = colon - 1;
    }
    size_t n = colon ? (size_t)(end - begin) : 0,
           digits = colon ? strspn(colon + 1, "0123456789") : 0;
    long port = digits > 0 && digits < 6 && !colon[1 + digits] ? strtol(colon + 1, NULL, 10) : 0;
    bool bare_v6 = begin == text && n > 0 && memchr(begin, ':', n);
    if (n == 0 || n >= sizeof a->host || bare_v6 || port < 1 || port > 65535)
        return tsr_fail(TSR_EUSAGE, "expected an address host:port, found \"%.100s\"", text);
    memcpy(a->host, begin, n);
    a->host[n] = 0;
    a->port = (int)port;
    return 0;
}

void tsr_address_text(char out[static TSR_HOST_MAX + 16], const char *host, int port) {
    bool v6 = strchr(host, ':') != NULL;
    snprintf(out, TSR_HOST_MAX + 16, "%s%s%s:%d", v6 ? "[" : "", host, v6 ? "]" : "", port);
}

static int probe_path(char out[static TSR_PATH_MAX], const char *run_dir, uint64_t token) {
    char name[40];
    snprintf(name, sizeof name, "probe-%016" PRIx64, token);
    return path_of(out, run_dir, name);
}

int tsr_probe_put(const char *run_dir, uint64_t token) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, run_dir, "coordinator"));
    TSR_TRY(tsr_mkdir_p(path));
    TSR_TRY(probe_path(path, run_dir, token));
    return tsr_write_file_durable(path, "", 0);
}

int tsr_probe_find(const char *run_dir, uint64_t token, double timeout_s) {
    char path[TSR_PATH_MAX], host[TSR_HOST_MAX] = "this host";
    const struct timespec nap = {.tv_nsec = 20 * 1000 * 1000};
    TSR_TRY(probe_path(path, run_dir, token));
    for (double end = tsr_now() + timeout_s;;) {
        int fd = open(path, O_RDONLY | O_CLOEXEC); // unlike stat, it asks the server anew
        if (fd >= 0) {
            close(fd);
            return 0;
        }
        if (errno != ENOENT && errno != ESTALE && errno != EINTR)
            return tsr_fail_errno(errno, "cannot open", path);
        if (tsr_now() >= end)
            break;
        nanosleep(&nap, NULL);
    }
    gethostname(host, sizeof host - 1);
    return tsr_fail(TSR_EUSAGE,
                    "run.dir must be one directory, shared by all hosts: on %s, %s is not what it "
                    "is on rank 0's host",
                    host, run_dir);
}

int tsr_probe_remove(const char *run_dir, uint64_t token) {
    char path[TSR_PATH_MAX];
    TSR_TRY(probe_path(path, run_dir, token));
    if (unlink(path) < 0 && errno != ENOENT)
        return tsr_fail_errno(errno, "cannot remove", path);
    return 0;
}
