// Leveled log: one human line on stderr, one JSON object a line in the run directory.
#ifndef TSR_CORE_LOG_H
#define TSR_CORE_LOG_H

#include <stdbool.h>

enum tsr_log_level { TSR_LOG_DEBUG, TSR_LOG_INFO, TSR_LOG_WARN, TSR_LOG_ERROR };

// Who speaks: stands on each line. `world` 1 leaves the rank out of the human line.
void tsr_log_identity(int rank, int world, const char *host);

// Lines below `level` are dropped (default TSR_LOG_INFO; the environment's TESSERA_LOG is one of
// debug, info, warn, error).
void tsr_log_level(enum tsr_log_level level);

// Opens DIR/log.jsonl for append. Each line is one write(2), so ranks may share the file.
// Returns 0 or TSR_EIO.
int tsr_log_open(const char *dir);
void tsr_log_close(void);

__attribute__((format(printf, 2, 3))) void tsr_log(enum tsr_log_level level, const char *fmt, ...);

// One line into log.jsonl only: what would disturb people but may help them later.
__attribute__((format(printf, 2, 3))) void tsr_log_file(enum tsr_log_level level, const char *fmt,
                                                        ...);

#define tsr_debug(...) tsr_log(TSR_LOG_DEBUG, __VA_ARGS__)
#define tsr_info(...)  tsr_log(TSR_LOG_INFO, __VA_ARGS__)
#define tsr_warn(...)  tsr_log(TSR_LOG_WARN, __VA_ARGS__)
#define tsr_error(...) tsr_log(TSR_LOG_ERROR, __VA_ARGS__)

// True when stderr is a terminal: progress bars and colours are for terminals only.
bool tsr_log_is_tty(void);

// Several processes write to this terminal, some through pipes: from now on each line of this
// process and of those that it starts wipes what somebody's bar left there. They are told by the
// environment (TESSERA_TERMINAL), take standard error for a terminal and draw bars and colours.
// Does nothing when stderr is no terminal. To be called before threads are started.
void tsr_log_share(void);

// Columns of a terminal that is shared in this way, or 0.
int tsr_log_shared_columns(void);

// Draws `line` on the terminal's last line in place of what tsr_log_bar drew before; "" wipes it.
// A log line that comes between wipes it first. Does nothing when stderr is no terminal.
void tsr_log_bar(const char *line);

#endif
