#include "core/log.h"
#include "core/error.h"
#include "core/io.h"
#include "core/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static const char *const LEVEL_NAME[] = {"debug", "info", "warn", "error"};
static const char *const LEVEL_COLOUR[] = {"\033[2m", "\033[32m", "\033[33m", "\033[31m"};

// The process has one standard error and one log file, so this is the one place with state of
// its own. Identity is set before threads start; the rest is atomic.
static struct {
    int rank, world;
    char host[64];
    atomic_int level;   // -1: not chosen yet
    atomic_int fd;      // of log.jsonl, or -1
    atomic_bool bar;    // a progress bar stands on the terminal's last line
    atomic_bool lost;   // said that log.jsonl can't be written
    atomic_bool shared; // others write to the same terminal: see tsr_log_share
    bool tty, colour;
} g = {.world = 1, .level = -1, .fd = -1};

static pthread_once_t once = PTHREAD_ONCE_INIT;

int tsr_log_shared_columns(void) {
    const char *text = getenv("TESSERA_TERMINAL");
    return text ? atoi(text) : 0;
}

static void start(void) {
    const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");
    bool dumb = term && strcmp(term, "dumb") == 0;
    atomic_store(&g.shared, tsr_log_shared_columns() > 0);
    g.tty = atomic_load(&g.shared) || (isatty(STDERR_FILENO) == 1 && !dumb);
    g.colour = g.tty && !dumb && !(no_colour && no_colour[0]);
    if (g.host[0] == 0 && gethostname(g.host, sizeof g.host) == 0)
        g.host[sizeof g.host - 1] = 0;
    if (atomic_load(&g.level) >= 0)
        return; // the program's own choice goes before the environment's
    const char *want = getenv("TESSERA_LOG");
    atomic_store(&g.level, TSR_LOG_INFO);
    if (!want || !want[0])
        return;
    for (int i = TSR_LOG_DEBUG; i <= TSR_LOG_ERROR; i++)
        if (strcmp(want, LEVEL_NAME[i]) == 0) {
            atomic_store(&g.level, i);
            return;
        }
    dprintf(STDERR_FILENO,
            "tessera: TESSERA_LOG: expected debug, info, warn or error, found \"%s\"\n", want);
}

void tsr_log_identity(int rank, int world, const char *host) {
    g.rank = rank;
    g.world = world;
    snprintf(g.host, sizeof g.host, "%s", host);
}

void tsr_log_level(enum tsr_log_level level) {
    atomic_store(&g.level, (int)level);
}

int tsr_log_open(const char *dir) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, dir, "log.jsonl"));
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0)
        return tsr_fail(TSR_EIO, "%s: cannot open: %s", path, strerror(errno));
    tsr_log_close();
    atomic_store(&g.lost, false);
    atomic_store(&g.fd, fd);
    return 0;
}

void tsr_log_close(void) {
    int fd = atomic_exchange(&g.fd, -1);
    if (fd >= 0)
        close(fd);
}

bool tsr_log_is_tty(void) {
    pthread_once(&once, start);
    return g.tty;
}

void tsr_log_share(void) {
    struct winsize w;
    char columns[16];
    if (!tsr_log_is_tty() || atomic_load(&g.shared))
        return;
    bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0;
    snprintf(columns, sizeof columns, "%d", known ? w.ws_col : 80);
    if (setenv("TESSERA_TERMINAL", columns, 1) == 0)
        atomic_store(&g.shared, true);
}

// mpirun may hand its ranks a non-blocking standard error: wait a little rather than lose text.
static void write_stderr(const char *s, size_t n) {
    while (n > 0) {
        ssize_t w = write(STDERR_FILENO, s, n);
        if (w < 0 && errno == EAGAIN) {
            struct pollfd p = {STDERR_FILENO, POLLOUT, 0};
            if (poll(&p, 1, 1000) <= 0)
                return;
            continue;
        }
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return; // nobody listens: there is nowhere to say so
        s += w;
        n -= (size_t)w;
    }
}

void tsr_log_bar(const char *line) {
    pthread_once(&once, start);
    if (!g.tty)
        return;
    struct tsr_buf b = {0};
    // What somebody else writes next then stands at the beginning of a line.
    const char *back = atomic_load(&g.shared) ? "\r" : "";
    if (tsr_buf_printf(&b, "\r%s\033[K%s", line, back) == 0)
        write_stderr(b.data, b.len);
    tsr_buf_free(&b);
    atomic_store(&g.bar, line[0] != 0);
}

// Appends a JSON string (RFC 8259, section 7). What isn't UTF-8 becomes U+FFFD.
static int append_json(struct tsr_buf *b, const char *text) {
    size_t n = strlen(text), i = 0, len;
    int rc = tsr_buf_append(b, "\"", 1);
    for (; i < n && rc == 0; i += len) {
        const char *s = text + i;
        len = tsr_utf8_char(s, n - i);
        if (len == 0) {
            len = 1;
            rc = tsr_buf_append(b, "\\ufffd", 6);
        } else if (*s == '"' || *s == '\\') {
            rc = tsr_buf_printf(b, "\\%c", *s);
        } else if (*s == '\n') {
            rc = tsr_buf_append(b, "\\n", 2);
        } else if ((unsigned char)*s < 0x20 || *s == 0x7F) {
            rc = tsr_buf_printf(b, "\\u%04x", *s);
        } else {
            rc = tsr_buf_append(b, s, len);
        }
    }
    return rc == 0 ? tsr_buf_append(b, "\"", 1) : rc;
}

static void write_json(enum tsr_log_level level, const struct timespec *now, const char *msg) {
    int fd = atomic_load(&g.fd);
    if (fd < 0)
        return;
    struct tm tm;
    gmtime_r(&now->tv_sec, &tm);
    struct tsr_buf b = {0};
    if (tsr_buf_printf(&b,
                       "{\"time\": \"%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ\", \"level\": \"%s\", ",
                       tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min,
                       tm.tm_sec, now->tv_nsec / 1000000, LEVEL_NAME[level]) == 0 &&
        tsr_buf_printf(&b, "\"rank\": %d, \"host\": ", g.rank) == 0 &&
        append_json(&b, g.host) == 0 && tsr_buf_append(&b, ", \"msg\": ", 9) == 0 &&
        append_json(&b, msg) == 0 && tsr_buf_append(&b, "}\n", 2) == 0) {
        ssize_t n;
        do
            n = write(fd, b.data, b.len);
        while (n < 0 && errno == EINTR);
        if (n != (ssize_t)b.len && !atomic_exchange(&g.lost, true))
            dprintf(STDERR_FILENO, "tessera: cannot write log.jsonl: %s\n",
                    n < 0 ? strerror(errno) : "short write");
    }
    tsr_buf_free(&b);
}

static void write_human(enum tsr_log_level level, const struct timespec *now, const char *msg) {
    struct tm tm;
    localtime_r(&now->tv_sec, &tm);
    char who[96] = "";
    if (g.world > 1)
        snprintf(who, sizeof who, "[rank %d %s] ", g.rank, g.host);
    struct tsr_buf b = {0};
    // The bar is drawn again at its next update.
    bool wipe = atomic_load(&g.bar) || atomic_load(&g.shared);
    if (tsr_buf_printf(&b, "%s%02d:%02d:%02d %s%-5s%s %s%s\n", wipe ? "\r\033[K" : "", tm.tm_hour,
                       tm.tm_min, tm.tm_sec, g.colour ? LEVEL_COLOUR[level] : "", LEVEL_NAME[level],
                       g.colour ? "\033[0m" : "", who, msg) == 0)
        write_stderr(b.data, b.len);
    tsr_buf_free(&b);
}

static void write_line(enum tsr_log_level level, bool human, const char *fmt, va_list ap) {
    pthread_once(&once, start);
    if ((int)level < atomic_load(&g.level))
        return;
    char small[1024], *msg = small, *big = NULL;
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(small, sizeof small, fmt, ap);
    if (n >= (int)sizeof small && (big = malloc((size_t)n + 1))) { // else: cut rather than lost
        vsnprintf(big, (size_t)n + 1, fmt, again);
        msg = big;
    }
    va_end(again);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (human)
        write_human(level, &now, msg);
    write_json(level, &now, msg);
    free(big);
}

void tsr_log(enum tsr_log_level level, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    write_line(level, true, fmt, ap);
    va_end(ap);
}

void tsr_log_file(enum tsr_log_level level, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    write_line(level, false, fmt, ap);
    va_end(ap);
}
