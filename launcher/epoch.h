// RUN_DIR/coordinator: the files by which the processes of one run find and trust each other.
//
//   key       32 random bytes in hexadecimal, mode 0600, made once in the life of the directory
//   epoch     number of the run's present incarnation, in decimal; each incarnation takes the next
//             one, and whoever holds an older one may write nothing any more
//   address   where the coordinator listens: one JSON object, replaced at each start of it
//   lock      held while the epoch is taken, so that two starts at once get different numbers
#ifndef TSR_LAUNCHER_EPOCH_H
#define TSR_LAUNCHER_EPOCH_H

#include <stdint.h>

#include "launcher/control/session.h"

enum { TSR_HOST_MAX = 256 };

struct tsr_address {
    char host[TSR_HOST_MAX]; // name or number; a number of IPv6 without brackets
    int port, metrics_port;  // metrics_port 0: none
    int64_t pid;             // of the coordinator
    uint64_t epoch;
};

// The newest epoch that was taken, 0 when none was. TSR_EDATA when the file isn't ours.
int tsr_epoch_read(const char *run_dir, uint64_t *epoch);

// Takes the next epoch, durably: after a crash at any instant nobody gets the same one again.
// Makes RUN_DIR/coordinator and the key when they are missing.
int tsr_epoch_take(const char *run_dir, uint64_t *epoch);

// TSR_EPEER when a newer incarnation took the run over since `epoch`; TSR_EUSAGE when nobody has
// taken that one.
int tsr_epoch_check(const char *run_dir, uint64_t epoch);

// Loads the run's key: see tsr_secret_load.
int tsr_run_key(const char *run_dir, uint8_t secret[static TSR_SECRET]);

int tsr_address_write(const char *run_dir, const struct tsr_address *a);
// Returns 1, or 0 when there is no such file. TSR_EDATA when it isn't ours.
int tsr_address_read(const char *run_dir, struct tsr_address *a);

// "host:port" or "[v6]:port"; fills host and port only. TSR_EUSAGE.
int tsr_address_parse(const char *text, struct tsr_address *a);
// The reverse.
void tsr_address_text(char out[static TSR_HOST_MAX + 16], const char *host, int port);

// Is RUN_DIR the same directory on all ranks? One rank puts a probe there under `token` (a random
// number that it tells the others), each looks for it, and the first one takes it away again. A
// network file system may show a new file late: `find` looks for `timeout_s`, then it is TSR_EUSAGE
// naming this host.
int tsr_probe_put(const char *run_dir, uint64_t token);
int tsr_probe_find(const char *run_dir, uint64_t token, double timeout_s);
int tsr_probe_remove(const char *run_dir, uint64_t token);

#endif
