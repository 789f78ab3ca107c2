// Processes of a supervised run: started so that they end with their parent, and all found again,
// whoever their parent is by then.
#ifndef TSR_LAUNCHER_SUPERVISE_SPAWN_H
#define TSR_LAUNCHER_SUPERVISE_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

struct tsr_spawn {
    const char *const *argv; // argv[0] is looked up in PATH unless it has a '/'; ends with NULL
    const char *const *env;  // "NAME=VALUE" in addition to the own environment; ends with NULL
    int in, out, err;        // descriptors that become 0, 1, 2; -1: the own ones
};

// Starts a program in a session of its own (a Ctrl-C at the terminal is not for it), with all
// signals in their default state, that gets SIGKILL when this *thread* ends: call it on the main
// thread. TSR_EUSAGE when there is no such program, TSR_ENOMEM, TSR_EIO.
int tsr_spawn(const struct tsr_spawn *s, pid_t *pid);

// From now on this process gets SIGKILL when the thread that started it ends. If that has happened
// already it ends here, with exit code 4. For ranks, early in main.
void tsr_die_with_parent(void);

// For a rank that found no coordinator for long: ends the daemon of Open MPI that started it, if
// there is one, which may be cut off from its mpirun and would wait for ever.
void tsr_end_daemon(void);

// Whether a process of this machine exists and is no zombie.
bool tsr_process_lives(pid_t pid);

// Makes this process the parent of all orphans among its descendants, so that none gets out of
// sight.
void tsr_adopt_orphans(void);

// The descendants of this process, zombies left out; -1 when /proc can't be read. The list is the
// caller's.
int tsr_descendants(pid_t **out);

// Sends `sig` to every descendant but those in keep[n_keep] (and what descends from them is not
// spared). Returns how many there were.
int tsr_signal_descendants(int sig, const pid_t *keep, int n_keep);

#endif
