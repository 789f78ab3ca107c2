// The agent's inside: agent.c has its thread and calls, agent_link.c the connection, agent_save.c
// the save, agent_messages.c what it says.
#ifndef TSR_LAUNCHER_AGENT_PRIVATE_H
#define TSR_LAUNCHER_AGENT_PRIVATE_H

#include <uv.h>
#include "core/io.h"
#include "launcher/agent.h"
#include "launcher/link.h"

// A message of our own, out of pieces that live as long as it does.
struct tsr_said_vote { // SaveVote or SaveDigests
    bool there;
    struct tsr_save_vote vote;
    char error[512];
    Tessera__Checkpoint__RangeDigests *ranges, **list;
    Tessera__Checkpoint__SaveVote as_vote;
    Tessera__Checkpoint__SaveDigests as_digests;
};

struct tsr_said_plan {
    bool there;
    struct tsr_save_plan plan;
    Tessera__Checkpoint__PlannedFile *files, **list;
    Tessera__Checkpoint__SavePlan message;
};

enum tsr_save_work {
    TSR_WORK_NONE,
    TSR_WORK_BEGIN,
    TSR_WORK_WRITE,
    TSR_WORK_DIGEST,
    TSR_WORK_ENDED
};

// The save in flight; the loop's own, except what a running work fills.
struct tsr_agent_save {
    bool active;
    uint64_t step;
    uint32_t attempt;
    struct tsr_save_ops ops;
    bool write_asked, digest_asked; // and not answered yet
    struct tsr_span *spans;         // (n_spans) of the last SaveDigest
    int n_spans;
    struct tsr_said_plan plan;
    struct tsr_said_vote vote, digests; // digests are of spans
    bool over;                          // its end was told: result
    struct tsr_save_result result;
    int own_code; // of this rank's own failure
    // The work that runs.
    enum tsr_save_work running;
    uv_work_t work;
    int code;
    char error[512];
    struct tsr_span *work_spans; // (n_work_spans)
    int n_work_spans;
    struct tsr_save_plan new_plan;
    struct tsr_save_vote new_vote;
};

enum tsr_agent_state { TSR_AGENT_OPENING, TSR_AGENT_UP, TSR_AGENT_FAILED, TSR_AGENT_ENDED };

struct tsr_agent {
    struct tsr_agent_opt opt;
    char host[TSR_HOST_MAX], run_dir[TSR_PATH_MAX], address[TSR_HOST_MAX + 16];
    uint8_t secret[TSR_SECRET];
    uv_thread_t thread;
    uv_loop_t loop;
    uv_async_t wake;
    uv_timer_t timer;
    uv_check_t check;
    bool leaving; // handles are being closed

    // agent_link.c
    Tessera__Control__Hello hello;
    struct tsr_link *link; // NULL: waiting to try again
    bool welcomed;         // on this link
    bool ever_welcomed;
    int attempts;
    double heartbeat_s, lost_s;
    double passed;    // when the loop last came by
    double silence_s; // since the last frame, without the time that this process was paused
    double down_s;    // since the last connection, likewise
    double retry_at, back_off_s, beat_at;
    double poll_at, peer_failed_at; // of opt.poll; 0: no failure yet
    char last_reason[1024];         // why the last attempt or connection ended

    // agent_save.c
    struct tsr_agent_save save;
    ProtobufCMessage *last_end; // SaveDone or SaveAbort of the save before, or NULL
    uint16_t last_end_type;

    // Said again on each connection.
    Tessera__Checkpoint__ShardMap **map; // (n_map) parts
    int n_map;
    Tessera__Control__StepReport report;
    bool has_report, report_news;

    // Shared with the main thread, under `lock`.
    uv_mutex_t lock;
    uv_cond_t changed;
    enum tsr_agent_state state;
    int open_code;
    char open_error[1024];
    Tessera__Checkpoint__ShardMap **new_map;
    int n_new_map;
    Tessera__Control__StepReport new_report;
    bool has_new_report;
    struct tsr_agent_save *new_save; // step, attempt and ops only
    bool save_busy;
    struct tsr_save_result last_result;
    bool closing;
    int exit_code;
};

// agent_link.c
void tsr_agent_link_pass(struct tsr_agent *a); // after each round of the loop
void tsr_agent_send(struct tsr_agent *a, uint16_t type, const ProtobufCMessage *m);
void tsr_agent_beat(struct tsr_agent *a);

// agent_save.c
void tsr_agent_save_begin(struct tsr_agent *a, const struct tsr_agent_save *wanted);
int tsr_agent_save_message(struct tsr_agent *a, uint16_t type, const ProtobufCMessage *m);
void tsr_agent_save_repeat(struct tsr_agent *a);                             // on a new connection
void tsr_agent_save_fail(struct tsr_agent *a, int code, const char *reason); // no-op without one

// agent_messages.c
int tsr_map_split(const Tessera__Checkpoint__ShardMap *map, Tessera__Checkpoint__ShardMap ***parts,
                  int *n_parts);
void tsr_map_free(Tessera__Checkpoint__ShardMap **parts, int n_parts);
// Both take what the plan or vote holds, also when they fail.
int tsr_said_plan_set(struct tsr_said_plan *s, struct tsr_save_plan *plan, uint64_t step,
                      uint32_t attempt);
void tsr_said_plan_free(struct tsr_said_plan *s);
// `code` negative: the failure `error` instead of a vote. A vote too large for a frame is a
// failure.
void tsr_said_vote_set(struct tsr_said_vote *s, struct tsr_save_vote *vote, uint64_t step,
                       uint32_t attempt, int code, const char *error);
void tsr_said_vote_free(struct tsr_said_vote *s);

#endif
