// The run file: one plain struct, one field table. The table drives parsing, `key=value`
// overrides, `tessera train --help`, the dump into the run directory, and what may change on
// resuming.
#ifndef TSR_CORE_RUN_H
#define TSR_CORE_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include "core/io.h"

enum tsr_lr_schedule { TSR_LR_CONSTANT, TSR_LR_LINEAR, TSR_LR_COSINE, TSR_LR_WSD };
enum tsr_precision { TSR_FP32, TSR_BF16 };
enum tsr_recompute { TSR_RECOMPUTE_NONE, TSR_RECOMPUTE_SELECTIVE, TSR_RECOMPUTE_FULL };
enum tsr_pipeline { TSR_PIPE_GPIPE, TSR_PIPE_1F1B, TSR_PIPE_INTERLEAVED };
enum tsr_packing { TSR_PACK_CROSSING, TSR_PACK_ISOLATED };
enum tsr_on_bad { TSR_ON_BAD_SKIP, TSR_ON_BAD_ROLLBACK, TSR_ON_BAD_STOP }; // core/guard.h
enum tsr_backend { TSR_BACKEND_AUTO, TSR_BACKEND_CPU, TSR_BACKEND_CUDA };

struct tsr_source {
    char *path;    // resolved: absolute, or relative to the current directory
    double weight; // relative; 1 unless given
};

struct tsr_sources {
    struct tsr_source *items;
    int n;
};

struct tsr_layout3 {
    int64_t tp, pp, dp;
};

struct tsr_layouts {
    struct tsr_layout3 *items;
    int n;
};

struct tsr_run {
    struct {
        char *name, *dir;
        int64_t seed;
    } run;
    struct {
        char *from, *preset, *config; // exactly one; config is JSON text
        char *tokenizer;              // folder, or NULL
    } model;
    struct {
        struct tsr_sources train, valid; // valid.n == 0: held out from the text
        int64_t seq_len;
        bool shuffle;
        int packing; // enum tsr_packing
    } data;
    struct {
        int64_t steps, global_batch, micro_batch; // batches count sequences
        double lr;
        int schedule;          // enum tsr_lr_schedule
        int64_t warmup, decay; // decay: last steps of wsd, -1: a fifth of steps
        double min_lr, beta1, beta2, eps, weight_decay, clip;
        int precision, recompute;
        bool stochastic_rounding; // of bf16 weights
        int64_t eval_every;       // 0: never
        struct {
            double embedding, attention, residual, ffn;
        } dropout;
        int on_nonfinite;  // enum tsr_on_bad
        int64_t max_skips; // in a row, or rollbacks to one checkpoint
        struct {
            double grad_norm, loss; // times the median of the window; 0: off
            int64_t window;         // good steps
            int action;             // enum tsr_on_bad
        } spike;
    } train;
    struct {
        int64_t tp, pp, dp; // dp 0: world / (tp pp)
        int schedule;       // enum tsr_pipeline
        int64_t chunks;
        bool sequence, exact;
        int64_t virtual_shards, virtual_replicas; // 0: derived
        struct tsr_layouts elastic;               // in order of preference
    } parallel;
    struct {
        int64_t every, keep; // every 0: only at the end; keep 0: all
        bool async;
        char *resume; // "auto", "none" or a folder
    } checkpoint;
    struct {
        int64_t restarts;              // without a new checkpoint between them
        int64_t heartbeat_ms, lost_ms; // silence of lost_ms is death
        int64_t stall_ms, first_ms;    // least standing still that is a hang; in a new phase
        int64_t metrics_port;          // 0: none
    } supervise;
    struct {
        int backend;
        int64_t threads; // 0: cores / ranks on this host
    } device;
};

// Reads a run file and the overrides ("train.steps=50"). Reports every mistake of both at once,
// one per line with line and column and the nearest known key: TSR_ECONFIG (TSR_EUSAGE for an
// override that has no '='). Paths in the file are relative to the file's folder, in overrides
// to the current directory. Cross-field rules that need no world size are checked too.
int tsr_run_load(struct tsr_run *r, const char *path, const char *const *overrides,
                 int n_overrides);
void tsr_run_free(struct tsr_run *r);

// The resolved run as YAML, in table order; reading it back gives the same run.
int tsr_run_dump(const struct tsr_run *r, struct tsr_buf *out);

// Compares a run with the YAML stamped in a checkpoint: each field marked `fixed` in the table
// that differs is named (TSR_ECONFIG). `train.steps` and other `free` fields may change.
int tsr_run_check_resume(const struct tsr_run *r, const char *stamped_yaml, const char *where);

// Calls back per field, in order, for --help: "train.steps", "integer >= 1", "default or
// (required)", help; whether it is fixed when a run resumes.
void tsr_run_fields_each(void (*fn)(const char *path, const char *type, const char *dflt,
                                    const char *help, bool fixed, void *arg),
                         void *arg);

// The learning rate of step s, counted from 1 (docs/training.md).
double tsr_run_lr(const struct tsr_run *r, int64_t s);

// Virtual shards V and replicas W of a run laid out over tp and dp ranks, and whether the batch can
// be dealt out so: V / tp and W / dp are powers of two, or tp and dp are 1; W divides the global
// batch; a micro-batch is whole pieces of it (a power of two, or all that a rank has) or a piece is
// whole micro-batches. TSR_ECONFIG says what would fit.
int tsr_run_shards(const struct tsr_run *r, int64_t tp, int64_t dp, int *V, int *W);

// Checks the layout against the number of ranks and sets *dp, which may be given or derived:
// world = tp pp dp, tsr_run_shards, and pp divides the micro-batches of a rank when interleaved.
int tsr_run_check_world(const struct tsr_run *r, int64_t world, int64_t *dp);

// Checks the run against its model: a layer for each of pp * chunks stages, a head for each of tp
// ranks, positions for data.seq_len tokens (rotary positions have no end).
struct tsr_model;
int tsr_run_check_model(const struct tsr_run *r, const struct tsr_model *m, int64_t tp, int64_t pp);

// The known word nearest to `word` by edit distance, or NULL when none is near. For messages.
const char *tsr_nearest(const char *word, const char *const *known, int n_known);

#endif
