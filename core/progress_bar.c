#include "core/progress_bar.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR_CELLS = 24, LINE_MAX_BYTES = 512 };
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
        snprintf(out, 48, "%.*f%s %.24s", digits, v, PREFIX[p], unit);
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

// Columns of the terminal; a line as wide as that would wrap and could not be redrawn.
static size_t columns(void) {
    struct winsize w;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) < 0 || w.ws_col < 20)
        return 79;
    return w.ws_col - 1u < LINE_MAX_BYTES - 1u ? w.ws_col - 1u : LINE_MAX_BYTES - 1u;
}

static void cells(char out[static BAR_CELLS + 3], double fraction) {
    int full = (int)(fraction * BAR_CELLS);
    out[0] = '[';
    for (int i = 0; i < BAR_CELLS; i++)
        out[1 + i] = i < full ? '=' : i == full ? '>' : ' ';
    memcpy(out + 1 + BAR_CELLS, "]", 2);
}

static void show(const struct tsr_bar *bar, double now, const char *extra) {
    char line[LINE_MAX_BYTES], done[48], total[48], rate[48], left[32], graph[BAR_CELLS + 3];
    double elapsed = now - bar->began_s;
    double per_s = elapsed > 0 ? (double)(bar->done - bar->first) / elapsed : 0;
    amount(done, (double)bar->done, bar->unit);
    amount(rate, per_s, bar->unit);
    const char *gap = extra && extra[0] ? "  " : "";
    extra = extra ? extra : "";
    if (bar->total == 0) {
        snprintf(line, sizeof line, "%s  %s  %s/s%s%s", bar->label, done, rate, gap, extra);
    } else {
        double fraction = (double)bar->done / (double)bar->total;
        amount(total, (double)bar->total, bar->unit);
        snprintf(left, sizeof left, "?");
        if (per_s > 0)
            duration(left, (double)(bar->total - bar->done) / per_s);
        cells(graph, fraction);
        snprintf(line, sizeof line, "%s %s%s%3d%%  %s of %s  %s/s  ETA %s%s%s", bar->label,
                 tsr_log_is_tty() ? graph : "", tsr_log_is_tty() ? " " : "", (int)(100 * fraction),
                 done, total, rate, left, gap, extra);
    }
    if (!tsr_log_is_tty()) {
        tsr_info("%s", line);
        return;
    }
    size_t width = columns();
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
