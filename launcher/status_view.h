// What `tessera status` knows of a run, and how it shows it.
#ifndef TSR_LAUNCHER_STATUS_VIEW_H
#define TSR_LAUNCHER_STATUS_VIEW_H

#include "core/io.h"
#include "control.pb-c.h"
#include "launcher/epoch.h"

// Asks a coordinator; waits for 3 s at most. 0 and the status, which the caller frees by
// tessera__control__status__free_unpacked(s, NULL); TSR_EREQUEST: refused; TSR_EPEER: nobody
// answers.
int tsr_status_ask(const struct tsr_address *at, const uint8_t *secret,
                   Tessera__Control__Status **status);

struct tsr_status_view {
    const char *run_dir;
    const Tessera__Control__Status *live; // NULL: the run isn't running
    const char *why;                      // when not live: what was looked for and not found
    // The last line of metrics.jsonl.
    bool has_metrics;
    Tessera__Control__StepReport metrics;
    int64_t committed_step; // newest checkpoint in the directory, 0: none
    int64_t steps;          // of config.yaml, 0: not known
};

// Whether the run isn't running because its last step is trained and saved.
bool tsr_status_is_finished(const struct tsr_status_view *v);

// Append to `out`. The text has colours and a bar on a terminal; a JSON object is one line.
int tsr_status_text(struct tsr_buf *out, const struct tsr_status_view *v, bool terminal);
int tsr_status_json(struct tsr_buf *out, const struct tsr_status_view *v);

// Seconds that the rest of the run takes at the last step's pace; negative: not known.
double tsr_status_eta_s(const struct tsr_status_view *v);
// The newest report, NULL when there is none.
const Tessera__Control__StepReport *tsr_status_report(const struct tsr_status_view *v);

#endif
