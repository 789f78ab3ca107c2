// What a rank of `tessera train` does.
#ifndef TSR_LAUNCHER_TRAINING_H
#define TSR_LAUNCHER_TRAINING_H

// Trains as one of the run's ranks; returns the process's exit code. `command` is for messages.
int tsr_train_rank(const char *command, const char *path, const char *const *overrides, int n);

#endif
