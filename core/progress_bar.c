#include "core/progress_bar.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR_CELLS = 24, MIN_CELLS = 5, LINE_MAX_BYTES = 512 };
static const double REDRAW_S = 0.1, LOG_S = 5.0;

// "12.3 MB" for bytes; "800 steps" and, once that gets long, "1.25M tokens" for the rest.
static void amount(char out[static 48], double v, const char *unit) {
    static const char *const PREFIX[] = {"", "k", "M", "G", "T", "P"};
    int p = 0, bytes = strcmp(unit, "B") == 0;
    double limit = bytes ? 1000 : 100000;
    if (v >= limit)
        for (; v >= 1000 && p < 5; p++)
            v /= 1000;
    int digits = p == 0 && (v >= 100 || v == (double)(int64_t)v) ? 0 : v < 10 ? 2 : v < 100 ? 1 : 0;
    if (bytes)
        snprintf(out, 48, "%.*f %sB", digits, v, PREFIX[p]);
    else
        snprintf(out, 48, "%.*f%s%s%.24s", digits, v, PREFIX[p], unit[0] ? " " : "", unit);
}

static void duration(char out[static 32], double s) {
    if (s >= 359999) // nothing sensible can be said
        s = 359999;
    int t = (int)(s + 0.5);
    if (t >= 3600)
        snprintf(out, 32, "%d:%02d:%02d", t / 3600, t / 60 % 60, t % 60);
    else
        snprintf(out, 32, "%d:%02d", t / 60, t % 60);
}

// Columns that a line may have: one as wide as the terminal would wrap and could not be redrawn.
static size_t columns(void) {
    struct winsize w = {0};
    size_t n = 0;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0)
        n = w.ws_col;
    else if (tsr_log_shared_columns() > 0)
        n = (size_t)tsr_log_shared_columns();
    if (n < 20)
        n = 80;
    return n - 1 < LINE_MAX_BYTES - 1 ? n - 1 : LINE_MAX_BYTES - 1;
}

// "[=====>    ] " in `n` columns, or nothing when there is too little room for one.
static void graph(char out[static BAR_CELLS + 4], size_t n, double fraction) {
    out[0] = 0;
    if (n < MIN_CELLS + 3)
        return;
    int cells = n < BAR_CELLS + 3 ? (int)n - 3 : BAR_CELLS, full = (int)(fraction * cells);
    out[0] = '[';
    for (int i = 0; i < cells; i++)
        out[1 + i] = i < full ? '=' : i == full ? '>' : ' ';
    memcpy(out + 1 + cells, "] ", 3);
}

// What stands beside the bar: "54%  60 of 110 steps  2.5/s  ETA 0:20".
static void numbers(char *out, size_t size, const struct tsr_bar *bar, double per_s) {
    char done[48], total[48], rate[48], left[32] = "?";
    bool bytes = strcmp(bar->unit, "B") == 0;
    amount(done, (double)bar->done, bytes ? bar->unit : "");
    amount(rate, per_s, bytes || bar->total == 0 ? bar->unit : "");
    if (bar->total == 0) {
        amount(done, (double)bar->done, bar->unit);
        snprintf(out, size, " %s  %s/s", done, rate);
        return;
    }
    amount(total, (double)bar->total, bar->unit);
    if (per_s > 0)
        duration(left, (double)(bar->total - bar->done) / per_s);
    snprintf(out, size, "%3d%%  %s of %s  %s/s  ETA %s",
             (int)(100 * ((double)bar->done / (double)bar->total)), done, total, rate, left);
}

static void show(const struct tsr_bar *bar, double now, const char *extra) {
    char line[LINE_MAX_BYTES], beside[LINE_MAX_BYTES / 2], picture[BAR_CELLS + 4] = "";
    double elapsed = now - bar->began_s;
    double per_s = elapsed > 0 ? (double)(bar->done - bar->first) / elapsed : 0;
    const char *gap = extra && extra[0] ? "  " : "";
    bool tty = tsr_log_is_tty();
    extra = extra ? extra : "";
    numbers(beside, sizeof beside, bar, per_s);
    size_t width = tty ? columns() : 0;
    size_t used = strlen(bar->label) + 1 + strlen(beside) + strlen(gap) + strlen(extra);
    if (bar->total > 0 && used < width)
        graph(picture, width - used, (double)bar->done / (double)bar->total);
    snprintf(line, sizeof line, "%s %s%s%s%s", bar->label, picture, beside, gap, extra);
    if (!tty) {
        tsr_info("%s", line);
        return;
    }
    if (strlen(line) > width)
        line[width] = 0;
    tsr_log_bar(line);
}

void tsr_bar_begin(struct tsr_bar *bar, const char *label, const char *unit, uint64_t done,
                   uint64_t total) {
    double now = tsr_now();
    *bar = (struct tsr_bar){label, unit, done, total, done, now, now};
}

void tsr_bar_update(struct tsr_bar *bar, uint64_t done, const char *extra) {
    double now = tsr_now();
    bar->done = bar->total > 0 && done > bar->total ? bar->total : done;
    if (now - bar->shown_s < (tsr_log_is_tty() ? REDRAW_S : LOG_S))
        return;
    bar->shown_s = now;
    show(bar, now, extra);
}

void tsr_bar_stop(struct tsr_bar *bar) {
    bar->shown_s = bar->began_s;
    tsr_log_bar("");
}

void tsr_bar_end(struct tsr_bar *bar) {
    char done[48], rate[48], took[32];
    double elapsed = tsr_now() - bar->began_s;
    double n = (double)(bar->done - bar->first);
    tsr_bar_stop(bar);
    amount(done, n, bar->unit);
    amount(rate, elapsed > 0 ? n / elapsed : 0, bar->unit);
    if (elapsed < 10)
        snprintf(took, sizeof took, "%.1f s", elapsed);
    else
        duration(took, elapsed);
    tsr_info("%s: %s in %s (%s/s)", bar->label, done, took, rate);
}
