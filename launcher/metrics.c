#include "launcher/metrics.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/io.h"

enum { MAX_METRICS_BYTES = 1 << 30 };

// Length of the part of the file whose lines are of steps 1 to after_step.
static size_t kept(const char *text, size_t n, int64_t after_step) {
    size_t at = 0;
    while (at < n) {
        const char *end = memchr(text + at, '\n', n - at);
        if (!end)
            break;
        json_t *o = json_loadb(text + at, (size_t)(end - text) - at, 0, NULL);
        json_int_t step = json_integer_value(json_object_get(o, "step"));
        json_decref(o);
        if (step < 1 || step > after_step)
            break;
        at = (size_t)(end - text) + 1;
    }
    return at;
}

int tsr_metrics_open(struct tsr_metrics *m, const char *run_dir, int64_t after_step) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, run_dir, "metrics.jsonl"));
    if (tsr_path_exists(path)) {
        char *text = NULL;
        size_t n = 0;
        TSR_TRY(tsr_read_file(path, MAX_METRICS_BYTES, TSR_EIO, &text, &n));
        size_t keep = kept(text, n, after_step);
        int rc = keep < n ? tsr_write_file_durable(path, text, keep) : 0;
        free(text);
        TSR_TRY(rc);
    }
    m->path = strdup(path);
    m->f = fopen(path, "a");
    if (!m->path || !m->f)
        return tsr_fail(TSR_EIO, "%s: %s", path, strerror(errno));
    return 0;
}

// JSON has no NaN or infinity: null.
static void number(struct tsr_buf *b, const char *key, double v) {
    if (isfinite(v))
        tsr_buf_printf(b, ", \"%s\": %.9g", key, v);
    else
        tsr_buf_printf(b, ", \"%s\": null", key);
}

int tsr_metrics_write(struct tsr_metrics *m, const struct tsr_metrics_line *l) {
    struct tsr_buf b = {0};
    TSR_TRY(tsr_buf_printf(&b, "{\"step\": %lld", (long long)l->step));
    number(&b, "loss", (double)(float)l->loss);
    number(&b, "grad_norm", (double)(float)l->grad_norm);
    number(&b, "lr", l->lr);
    TSR_TRY(tsr_buf_printf(&b, ", \"tokens\": %lld", (long long)l->tokens));
    number(&b, "tokens_per_s", l->tokens_per_s);
    number(&b, "mfu", l->mfu);
    number(&b, "step_ms", l->step_ms);
    TSR_TRY(tsr_buf_printf(&b,
                           ", \"skipped\": %lld, \"rollbacks\": %lld, \"dropped_sequences\": %lld",
                           (long long)l->skipped, (long long)l->rollbacks, (long long)l->dropped));
    if (l->valid_loss >= 0.0)
        number(&b, "valid_loss", (double)(float)l->valid_loss);
    TSR_TRY(tsr_buf_printf(&b, "}\n"));
    int ok = fwrite(b.data, 1, b.len, m->f) == b.len && fflush(m->f) == 0;
    int error = errno;
    tsr_buf_free(&b);
    if (ok)
        return 0;
    return tsr_fail(error == ENOSPC || error == EDQUOT ? TSR_ENOSPC : TSR_EIO, "%s: %s", m->path,
                    strerror(error));
}

void tsr_metrics_close(struct tsr_metrics *m) {
    if (m->f)
        fclose(m->f);
    free(m->path);
    *m = (struct tsr_metrics){0};
}
