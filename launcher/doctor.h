// `tessera doctor`: one line for each thing that was looked at.
#ifndef TSR_LAUNCHER_DOCTOR_H
#define TSR_LAUNCHER_DOCTOR_H

#include <jansson.h>
#include <stdbool.h>

enum tsr_health { TSR_GOOD, TSR_DOUBTFUL, TSR_BROKEN };

struct tsr_doctor {
    bool json, colour;
    int n[3];           // lines of each kind
    json_t *lines;      // when json
    const char *folder; // where the disk is tried
};

// Reports one thing. `hint`: what to do about it, or NULL.
__attribute__((format(printf, 5, 6))) void tsr_doctor_say(struct tsr_doctor *d, enum tsr_health h,
                                                          const char *what, const char *hint,
                                                          const char *fmt, ...);

void tsr_doctor_cpu(struct tsr_doctor *d);
void tsr_doctor_memory(struct tsr_doctor *d);
void tsr_doctor_mpi(struct tsr_doctor *d);
void tsr_doctor_gpu(struct tsr_doctor *d);
void tsr_doctor_disk(struct tsr_doctor *d);
void tsr_doctor_clock(struct tsr_doctor *d);

// One of the two ranks that doctor starts; the process's exit code.
int tsr_doctor_rank(void);

#endif
