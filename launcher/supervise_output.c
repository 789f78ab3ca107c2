#include "launcher/supervise_output.h"

#include <string.h>
#include "core/error.h"

enum { N_DASHES = 74 };

void tsr_noise_free(struct tsr_noise *f) {
    tsr_buf_free(&f->held);
    *f = (struct tsr_noise){0};
}

// The first end of a line: a bar on a terminal goes back to the beginning of its own.
static const char *line_end(const char *s, size_t n) {
    const char *newline = memchr(s, '\n', n);
    const char *back = memchr(s, '\r', newline ? (size_t)(newline - s) : n);
    return back ? back : newline;
}

static bool contains_any(const char *text, size_t n, const char *const *phrases) {
    for (; *phrases; phrases++)
        if (memmem(text, n, *phrases, strlen(*phrases)))
            return true;
    return false;
}

// A paragraph that only says that ranks ended, which the supervisor says better. What tells why a
// program could not be started at all is not among them.
static bool is_noise(const char *paragraph, size_t n) {
    static const char *const phrases[] = {
        "noticed that process rank",
        "Primary job  terminated normally, but",
        "detected that one or more processes exited with non-zero status",
        "MPI_ABORT was invoked on rank",
        "has exited due to process rank",
        "MPI communication peer process has unexpectedly disconnected",
        "lost communication with a remote daemon",
        "unable to abort the job cleanly",
        NULL};
    return contains_any(paragraph, n, phrases);
}

// "[host:pid] 1 more process has sent help message …", outside of a paragraph.
static bool is_noise_line(const char *line, size_t n) {
    static const char *const phrases[] = {" sent help message ", "\"orte_base_help_aggregate\"",
                                          NULL};
    return line[0] == '[' && contains_any(line, n, phrases);
}

static bool is_dashes(const char *line, size_t n) {
    size_t k = 0;
    while (k < n && line[k] == '-')
        k++;
    return k == N_DASHES && (k == n || line[k] == '\n');
}

enum what { PASS, HOLD, DROP };

// What the held bytes are, which begin at the beginning of a line: the first *n of them.
static enum what judge(const struct tsr_buf *held, size_t *n) {
    const char *s = held->data, *newline = line_end(s, held->len);
    size_t line = newline ? (size_t)(newline - s) + 1 : held->len;
    *n = line;
    if (!newline && s[0] == '[')
        return HOLD;
    if (newline && is_noise_line(s, line))
        return DROP;
    size_t dashes = strspn(s, "-");
    if (!newline)
        return dashes == line && dashes <= N_DASHES ? HOLD : PASS;
    if (!is_dashes(s, line))
        return PASS;
    // A paragraph: to the next line of dashes.
    for (const char *at = s + line; (newline = memchr(at, '\n', held->len - (size_t)(at - s)));
         at = newline + 1) {
        if (!is_dashes(at, (size_t)(newline - at)))
            continue;
        *n = (size_t)(newline + 1 - s);
        return is_noise(s, *n) ? DROP : PASS;
    }
    return HOLD;
}

static int take(struct tsr_noise *f, size_t n, struct tsr_buf *to) {
    if (tsr_buf_append(to, f->held.data, n) < 0)
        return TSR_ENOMEM;
    memmove(f->held.data, f->held.data + n, f->held.len - n + 1); // with the NUL
    f->held.len -= n;
    return 0;
}

// Judges what is held, as long as something can be decided. `all`: nothing may stay.
static int settle(struct tsr_noise *f, double now_s, bool all, struct tsr_buf *out,
                  struct tsr_buf *noise) {
    while (f->held.len > 0) {
        size_t n;
        enum what what = f->in_line ? PASS : judge(&f->held, &n);
        if (f->in_line) { // the rest of a line whose beginning was passed on
            const char *newline = line_end(f->held.data, f->held.len);
            n = newline ? (size_t)(newline - f->held.data) + 1 : f->held.len;
        }
        if (what == HOLD && !all && f->held.len < TSR_NOISE_BYTES)
            return 0;
        if (what != DROP)
            f->in_line = f->held.data[n - 1] != '\n' && f->held.data[n - 1] != '\r';
        TSR_TRY(take(f, n, what == DROP ? noise : out));
        f->held_s = now_s;
    }
    return 0;
}

int tsr_noise_feed(struct tsr_noise *f, const char *data, size_t n, double now_s,
                   struct tsr_buf *out, struct tsr_buf *noise) {
    if (f->held.len == 0)
        f->held_s = now_s;
    TSR_TRY(tsr_buf_append(&f->held, data, n));
    return settle(f, now_s, false, out, noise);
}

int tsr_noise_flush(struct tsr_noise *f, double now_s, bool end, struct tsr_buf *out,
                    struct tsr_buf *noise) {
    return settle(f, now_s, end || now_s - f->held_s > TSR_NOISE_S, out, noise);
}
