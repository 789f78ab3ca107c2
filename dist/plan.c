#include "dist/plan.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/layout.h"
#include "dist/schedule.h"
#include "dist/snapshot.h"

// ---- one rank

static int no_tokens(void *arg, uint64_t g, int32_t *tokens, uint8_t *doc_start) {
    const struct tsr_run *run = arg;
    (void)g;
    memset(tokens, 0, (size_t)(run->data.seq_len + 1) * sizeof *tokens);
    for (int64_t i = 0; doc_start && i <= run->data.seq_len; i++)
        doc_start[i] = i == 0;
    return 0;
}

static struct tsr_mesh place(const struct tsr_mesh *like, int rank) {
    struct tsr_mesh m;
    tsr_mesh_place(&m, like->tp, like->pp, like->dp, rank);
    m.chunks = like->chunks;
    m.V = like->V;
    m.W = like->W;
    return m;
}

bool tsr_plan_on_device(const struct tsr_run *run) {
    return run->device.backend == TSR_BACKEND_CUDA || run->train.precision == TSR_BF16;
}

static int open_and_step(struct tsr_trainer *t, struct tsr_memory *out, const struct tsr_run *run,
                         const struct tsr_model *m, struct tsr_ctx *ctx, struct tsr_comm *comm,
                         const struct tsr_mesh *mesh) {
    struct tsr_step_result r;
    TSR_TRY(tsr_trainer_open(t, run, m, ctx, comm, mesh, no_tokens, (void *)(uintptr_t)run));
    TSR_TRY(tsr_trainer_step(t, &r));
    tsr_memory_of(t, out);
    out->kernels = tsr_plan_on_device(run) ? 0 : ctx->ops->scratch(ctx);
    out->snapshot = run->checkpoint.async
                        ? tsr_snapshot_bytes(&t->net)
                        : tsr_snapshot_direct_bytes(&t->net, tsr_plan_on_device(run));
    // No purpose is left out; a run opens all of its micro-batches, and its groups hold something.
    TSR_ASSERT(out->slabs == ctx->ops->allocated(ctx) + comm->device_bytes +
                                 (size_t)(t->n_micro - t->n_opened) * t->batches[0].slab_bytes);
    return 0;
}

int tsr_plan_rank(struct tsr_memory *out, uint64_t sent[TSR_N_TRAFFIC], const struct tsr_run *run,
                  const struct tsr_model *m, const struct tsr_mesh *mesh, int rank,
                  const struct tsr_plan_opt *opt) {
    struct tsr_mesh mine = place(mesh, rank);
    struct tsr_ctx ctx;
    struct tsr_comm comm;
    struct tsr_trainer t = {0};
    TSR_TRY(tsr_cpu_open_dry(&ctx, opt->isa, opt->threads));
    ctx.dtype = run->train.precision == TSR_BF16 ? TSR_DT_BF16 : TSR_DT_F32;
    int rc = tsr_comm_open_pretend(&comm, mine.world, rank, opt->per_host, opt->nccl);
    if (rc == 0)
        rc = open_and_step(&t, out, run, m, &ctx, &comm, &mine);
    if (rc == 0 && sent)
        memcpy(sent, comm.bytes_sent, sizeof comm.bytes_sent);
    tsr_trainer_close(&t);
    ctx.ops->close(&ctx);
    return rc;
}

// ---- shapes

// Everything that sizes depend on, as a list of numbers.
struct shape {
    int64_t *v;
    size_t n, cap;
    bool no_memory;
};

static void add(struct shape *s, int64_t v) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 256;
        int64_t *grown = realloc(s->v, cap * sizeof *grown);
        s->no_memory |= !grown;
        if (!grown)
            return;
        s->v = grown;
        s->cap = cap;
    }
    s->v[s->n++] = v;
}

// Whether rows from `row` on are this rank's own; else another's, of whose KV head it has a copy.
static bool owns_row(const struct tsr_net *net, const struct tsr_param *p, int64_t row) {
    if (p->t->split == TSR_SPLIT_NONE)
        return net->mesh.tp_rank == 0;
    int first = net->mesh.tp_rank * net->Vl;
    struct tsr_region lo = tsr_tensor_piece(p->t, first, net->mesh.V);
    struct tsr_region hi = tsr_tensor_piece(p->t, first + net->Vl - 1, net->mesh.V);
    return p->t->split == TSR_SPLIT_COLS || (row >= lo.r0 && row < hi.r1);
}

// Bytes that lie unused between two slices, as far as a copy of the state may care: it runs over
// small gaps (dist/snapshot.h).
static int64_t gap_of(int64_t rows, int64_t cols) {
    int64_t n_bytes = rows * cols * (int64_t)sizeof(float);
    return n_bytes < TSR_ALIGN ? n_bytes : TSR_ALIGN;
}

static void add_slices(struct shape *s, const struct tsr_net *net, const struct tsr_param *p) {
    struct tsr_range slices[TSR_MAX_PIECES];
    int n = tsr_param_slices(net, p, net->mesh.dp_rank, slices);
    int64_t end = 0;
    add(s, n);
    for (int k = 0; k < n; k++) {
        add(s, gap_of(slices[k].lo - end, p->cols));
        add(s, tsr_range_len(slices[k]));
        add(s, owns_row(net, p, p->held.r0 + slices[k].lo));
        end = slices[k].hi;
    }
    add(s, gap_of(p->rows - end, p->cols));
}

// Blocks of one model are alike: the first one's tensors and those outside stand for all.
static void add_tensors(struct shape *s, const struct tsr_net *net) {
    for (int i = 0; i < net->tensors.n; i++) {
        const struct tsr_tensor *t = &net->tensors.t[i];
        struct tsr_param p = {.t = t};
        if (t->layer > 0)
            continue;
        p.held = tsr_tensor_shard(t, net->mesh.V, net->mesh.tp_rank, net->mesh.tp);
        p.rows = p.held.r1 - p.held.r0;
        p.cols = p.held.c1 - p.held.c0;
        add(s, p.rows);
        add(s, p.cols);
        add_slices(s, net, &p);
    }
}

static void add_attention(struct shape *s, const struct tsr_net *net, const struct tsr_run *run) {
    struct tsr_range tok = {0, run->data.seq_len};
    if (run->parallel.sequence)
        tok = tsr_piece_of_rank(run->data.seq_len, net->mesh.V, net->mesh.tp_rank, net->mesh.tp);
    add(s, tsr_range_len(tok));
    for (int i = 0; i < net->n_slots; i++) {
        add(s, net->slots[i].q);
        add(s, net->slots[i].n);
        add(s, net->slots[i].kv);
        add(s, net->slots[i].piece);
    }
    // Pieces of k decide how a product is packed.
    for (int v = 0; v <= net->Vl; v++) {
        add(s, net->q_bound[v]);
        add(s, net->f_bound[v]);
        add(s, net->vocab_bound[v]);
    }
}

static int add_stages(struct shape *s, const struct tsr_net *net, const struct tsr_run *run) {
    const struct tsr_mesh *mesh = &net->mesh;
    int n_micro = (int)(run->train.global_batch / mesh->dp / run->train.micro_batch);
    int n = tsr_schedule_size(n_micro, mesh->chunks);
    struct tsr_action *a = calloc((size_t)n, sizeof *a);
    if (!a)
        return tsr_fail(TSR_ENOMEM, "no memory for the schedule");
    int rc = tsr_schedule_fill((enum tsr_pipeline)run->parallel.schedule, mesh->pp, mesh->pp_rank,
                               mesh->chunks, n_micro, a);
    for (int c = 0; rc == 0 && c < mesh->chunks; c++) {
        add(s, tsr_range_len(tsr_net_layers(net, c)));
        add(s, tsr_net_is_first(net, c));
        add(s, tsr_net_is_last(net, c));
        add(s, tsr_schedule_in_flight(a, n, c));
    }
    free(a);
    return rc;
}

// How far apart the ranks of this rank's groups lie: whether they meet in shared memory.
static void add_hosts(struct shape *s, const struct tsr_mesh *m, int per_host) {
    int tp0 = tsr_mesh_rank(m, 0, m->pp_rank, m->dp_rank);
    int pp0 = tsr_mesh_rank(m, m->tp_rank, 0, m->dp_rank);
    int dp0 = tsr_mesh_rank(m, m->tp_rank, m->pp_rank, 0);
    int tp1 = tp0 + m->tp - 1, pp1 = pp0 + (m->pp - 1) * m->tp;
    int dp1 = dp0 + (m->dp - 1) * m->pp * m->tp;
    add(s, tp0 / per_host == tp1 / per_host);
    add(s, pp0 / per_host == pp1 / per_host);
    add(s, dp0 / per_host == dp1 / per_host);
}

// `net` has its tensor table; its layout is opened here for the rank.
static int shape_of(struct shape *s, struct tsr_net *net, const struct tsr_run *run,
                    const struct tsr_mesh *mesh, int per_host) {
    net->mesh = *mesh;
    net->n_slots = net->n_shared_kv = 0;
    s->n = 0;
    int rc = tsr_layout_open(net);
    if (rc == 0) {
        add_tensors(s, net);
        add_attention(s, net, run);
        rc = add_stages(s, net, run);
        add_hosts(s, mesh, per_host);
    }
    tsr_layout_close(net);
    net->q_bound = net->f_bound = net->vocab_bound = net->kv_first = net->shared_kv = NULL;
    net->slots = NULL;
    if (rc == 0 && s->no_memory)
        rc = tsr_fail(TSR_ENOMEM, "no memory for a plan");
    return rc;
}

// ---- all ranks

static int add_class(struct tsr_plan *p, const struct shape *s, int rank) {
    struct tsr_plan_class *grown =
        realloc(p->classes, ((size_t)p->n_classes + 1) * sizeof *p->classes);
    if (!grown)
        return tsr_fail(TSR_ENOMEM, "no memory for a plan");
    p->classes = grown;
    struct tsr_plan_class *c = &p->classes[p->n_classes];
    *c = (struct tsr_plan_class){.first = rank, .shape_bytes = s->n * sizeof *s->v};
    c->shape = malloc(c->shape_bytes);
    if (!c->shape)
        return tsr_fail(TSR_ENOMEM, "no memory for a plan");
    memcpy(c->shape, s->v, c->shape_bytes);
    p->n_classes++;
    return 0;
}

static int sort_into(struct tsr_plan *p, const struct shape *s, int rank) {
    int k = 0;
    for (; k < p->n_classes; k++) {
        const struct tsr_plan_class *c = &p->classes[k];
        if (c->shape_bytes == s->n * sizeof *s->v && memcmp(c->shape, s->v, c->shape_bytes) == 0)
            break;
    }
    if (k == p->n_classes)
        TSR_TRY(add_class(p, s, rank));
    p->classes[k].n_ranks++;
    p->class_of[rank] = k;
    return 0;
}

static int classify(struct tsr_plan *p, struct tsr_net *net, const struct tsr_run *run,
                    int per_host) {
    struct shape s = {0};
    int rc = 0;
    for (int rank = 0; rc == 0 && rank < p->mesh.world; rank++) {
        struct tsr_mesh mesh = place(&p->mesh, rank);
        rc = shape_of(&s, net, run, &mesh, per_host);
        if (rc == 0)
            rc = sort_into(p, &s, rank);
    }
    free(s.v);
    return rc;
}

static int plan_classes(struct tsr_plan *p, const struct tsr_run *run, const struct tsr_model *m,
                        const struct tsr_plan_opt *opt) {
    for (int k = 0; k < p->n_classes; k++) {
        struct tsr_plan_class *c = &p->classes[k];
        TSR_TRY(tsr_plan_rank(&c->memory, NULL, run, m, &p->mesh, c->first, opt));
        c->total = tsr_memory_total(&c->memory);
    }
    return 0;
}

int tsr_plan_open(struct tsr_plan *p, const struct tsr_run *run, const struct tsr_model *m,
                  const struct tsr_mesh *mesh, const struct tsr_plan_opt *opt) {
    struct tsr_net net = {.m = m};
    *p = (struct tsr_plan){.mesh = place(mesh, 0)};
    TSR_TRY(tsr_net_check_limits(mesh));
    p->class_of = calloc((size_t)p->mesh.world, sizeof *p->class_of);
    int rc = p->class_of ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a plan");
    if (rc == 0)
        rc = tsr_tensor_table_build(&net.tensors, m);
    if (rc == 0) {
        rc = classify(p, &net, run, opt->per_host);
        tsr_tensor_table_free(&net.tensors);
    }
    if (rc == 0)
        rc = plan_classes(p, run, m, opt);
    if (rc < 0)
        tsr_plan_close(p);
    return rc;
}

void tsr_plan_close(struct tsr_plan *p) {
    for (int k = 0; k < p->n_classes; k++)
        free(p->classes[k].shape);
    free(p->classes);
    free(p->class_of);
    *p = (struct tsr_plan){0};
}

const struct tsr_plan_class *tsr_plan_largest(const struct tsr_plan *p) {
    int best = 0;
    for (int k = 1; k < p->n_classes; k++)
        if (p->classes[k].total > p->classes[best].total)
            best = k;
    return &p->classes[best];
}
