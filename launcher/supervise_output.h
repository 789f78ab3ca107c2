// Standard error of mpirun: what the ranks write passes through byte by byte; mpirun's own
// paragraphs about ranks that ended go to log.jsonl, as the supervisor says that in one line.
#ifndef TSR_LAUNCHER_SUPERVISE_OUTPUT_H
#define TSR_LAUNCHER_SUPERVISE_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include "core/io.h"

// mpirun's paragraphs stand between two lines of 74 dashes. From a line that begins like that on,
// bytes are held back, at most TSR_NOISE_BYTES of them and for TSR_NOISE_S: if it proves to be
// something else, all of it is passed on as it was.
enum { TSR_NOISE_BYTES = 8192 };
#define TSR_NOISE_S 0.3

struct tsr_noise {
    bool in_line;        // inside a line that was passed on already
    struct tsr_buf held; // from the beginning of a line
    double held_s;       // since when
};

void tsr_noise_free(struct tsr_noise *f);

// Takes bytes that arrived at monotonic time `now_s`; appends what is to be passed on to `out`, and
// mpirun's paragraphs to `noise`. 0 or TSR_ENOMEM.
int tsr_noise_feed(struct tsr_noise *f, const char *data, size_t n, double now_s,
                   struct tsr_buf *out, struct tsr_buf *noise);
// Gives up on what was held back too long, or, at the end, on all of it.
int tsr_noise_flush(struct tsr_noise *f, double now_s, bool end, struct tsr_buf *out,
                    struct tsr_buf *noise);

#endif
