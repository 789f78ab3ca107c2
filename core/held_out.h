// Which bytes of a text are for training and which are held out for validation, when the run
// file names no validation data.
//
// A text of 20 or more blocks of 8 KiB: blocks 19, 39, 59, … are held out. Where a block begins
// inside a line (or a character), the border moves on to the next line, or, when that is a block
// away, to the next whole character. The blocks between two borders are one document.
// A shorter text: its tail is held out, a twentieth but at least 2 KiB, or a quarter if that is
// less. JSONL: a document goes where its line begins; of a short file at least the last line is
// held out, unless it is the only one.
#ifndef TSR_CORE_HELD_OUT_H
#define TSR_CORE_HELD_OUT_H

#include "core/dataset.h"

enum { TSR_BLOCK_BYTES = 8192, TSR_BLOCK_PERIOD = 20 };

struct tsr_held_out {
    const char *text;
    size_t size;
    size_t tail; // a short text: held out from here on
    bool is_short;
};

void tsr_held_out_init(struct tsr_held_out *h, const char *text, size_t size, bool lines);

// The next run of bytes of that part at or behind period *k (start with 0): [*lo, *hi), not
// empty. False at the end. The runs of both parts are disjoint and cover the text.
bool tsr_held_out_next(const struct tsr_held_out *h, int part, size_t *k, size_t *lo, size_t *hi);

// Whether the line that begins at byte `at` belongs to that part (JSONL).
bool tsr_held_out_has_line(const struct tsr_held_out *h, int part, size_t at);

#endif
