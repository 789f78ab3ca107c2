// `tessera ckpt reshard`: the plan of reading a checkpoint into another layout.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/run_stamp.h"
#include "dist/reshard.h"
#include "launcher/ckpt.h"
#include "launcher/options.h"

enum { MAX_RANKS = 4096 };

struct resharding {
    const char *dir;
    bool json;
    struct tsr_layout3 to, from;
    bool from_known;
    struct tsr_model model;
    struct tsr_mesh mesh; // chunks, V and W
    struct tsr_reshard_rank *ranks;
    int n_ranks;
    uint64_t needed, read, verified, held; // held: bytes of the tensors in the checkpoint
};

// "tp=2,pp=2,dp=1", in any order; what isn't named is 1.
static int parse_layout(const char *text, struct tsr_layout3 *out) {
    *out = (struct tsr_layout3){1, 1, 1};
    const char *p = text;
    bool good = true, seen[3] = {false, false, false};
    while (good) {
        static const char *const names[3] = {"tp=", "pp=", "dp="};
        int64_t *to[3] = {&out->tp, &out->pp, &out->dp};
        int k = 0;
        char *end;
        while (k < 3 && strncmp(p, names[k], 3) != 0)
            k++;
        if (k == 3 || seen[k] || p[3] < '0' || p[3] > '9')
            break;
        seen[k] = true;
        *to[k] = strtoll(p + 3, &end, 10);
        good = *to[k] >= 1 && *to[k] <= MAX_RANKS;
        if (good && *end == 0 && out->tp * out->pp * out->dp <= MAX_RANKS)
            return 0;
        good = good && *end == ',';
        p = end + 1;
    }
    return tsr_fail(TSR_EUSAGE,
                    "--to takes a layout of at most %d ranks like tp=2,pp=2,dp=1, not \"%s\"",
                    MAX_RANKS, text);
}

// The target must be one that the run could resume in.
static int check_layout(struct resharding *x) {
    struct tsr_state s;
    struct tsr_run run;
    int V = 0, W = 0;
    TSR_TRY(tsr_state_read(&s, x->dir));
    int rc = tsr_run_read_stamp(&run, s.run_yaml, x->dir);
    if (rc == 0) {
        x->from = (struct tsr_layout3){run.parallel.tp, run.parallel.pp, run.parallel.dp};
        x->from_known = x->from.dp > 0;
        run.parallel.tp = x->to.tp;
        run.parallel.pp = x->to.pp;
        run.parallel.virtual_shards = s.virtual_shards;
        run.parallel.virtual_replicas = s.virtual_replicas;
        rc = tsr_run_shards(&run, x->to.tp, x->to.dp, &V, &W);
        if (rc == 0)
            rc = tsr_run_check_model(&run, &x->model, x->to.tp, x->to.pp);
        tsr_mesh_place(&x->mesh, (int)x->to.tp, (int)x->to.pp, (int)x->to.dp, 0);
        x->mesh.chunks =
            run.parallel.schedule == TSR_PIPE_INTERLEAVED ? (int)run.parallel.chunks : 1;
        x->mesh.V = V;
        x->mesh.W = W;
        tsr_run_free(&run);
    }
    tsr_state_free(&s);
    return rc;
}

static int plan_ranks(struct resharding *x) {
    const int world = x->mesh.world;
    x->ranks = calloc((size_t)world, sizeof *x->ranks);
    if (!x->ranks)
        return tsr_fail(TSR_ENOMEM, "no memory for a plan of %d ranks", world);
    for (int r = 0; r < world; r++) {
        struct tsr_mesh mesh;
        tsr_mesh_place(&mesh, x->mesh.tp, x->mesh.pp, x->mesh.dp, r);
        mesh.chunks = x->mesh.chunks;
        mesh.V = x->mesh.V;
        mesh.W = x->mesh.W;
        x->n_ranks++;
        TSR_TRY(tsr_reshard_plan(&x->ranks[r], x->dir, &x->model, &mesh));
        x->needed += x->ranks[r].needed;
        x->read += x->ranks[r].read;
        x->verified += x->ranks[r].verified;
    }
    // One rank that does everything holds each tensor once.
    struct tsr_mesh alone;
    struct tsr_reshard_rank all;
    tsr_mesh_place(&alone, 1, 1, 1, 0);
    int rc = tsr_reshard_plan(&all, x->dir, &x->model, &alone);
    x->held = all.needed;
    tsr_reshard_free(&all);
    return rc;
}

static double ratio(uint64_t a, uint64_t b) {
    return b ? (double)a / (double)b : 1.0;
}

// ---- the report

static void print_rank(const struct resharding *x, int r) {
    const struct tsr_reshard_rank *k = &x->ranks[r];
    char needed[32], n_read[32], verified[32];
    int tp = x->mesh.tp, pp = x->mesh.pp;
    printf("rank %d (tp %d, pp %d, dp %d): needs %s, reads %s of %d files; verifies %s before\n", r,
           r % tp, r / tp % pp, r / tp / pp, tsr_bytes_text(needed, k->needed),
           tsr_bytes_text(n_read, k->read), k->n_files, tsr_bytes_text(verified, k->verified));
    for (int i = 0; i < k->n_files; i++)
        printf("    %-44s %9s  in %" PRId64 " regions, reads %s\n", k->files[i].path,
               tsr_bytes_text(needed, k->files[i].needed), k->files[i].n_regions,
               tsr_bytes_text(n_read, k->files[i].read));
}

static void print_text(const struct resharding *x) {
    char a[32], b[32], c[32];
    for (int r = 0; r < x->n_ranks; r++)
        print_rank(x, r);
    if (x->from_known)
        printf("from %" PRId64 "x%" PRId64 "x%" PRId64 " ", x->from.tp, x->from.pp, x->from.dp);
    printf("to %" PRId64 "x%" PRId64 "x%" PRId64 " (tp, pp, dp): %s of tensors, %s needed by all "
           "ranks, %s read: amplification %.3f by gaps, %.3f with copies\n",
           x->to.tp, x->to.pp, x->to.dp, tsr_bytes_text(a, x->held), tsr_bytes_text(b, x->needed),
           tsr_bytes_text(c, x->read), ratio(x->read, x->needed), ratio(x->read, x->held));
}

static json_t *rank_json(const struct resharding *x, int r) {
    const struct tsr_reshard_rank *k = &x->ranks[r];
    int tp = x->mesh.tp, pp = x->mesh.pp;
    json_t *files = json_array();
    bool ok = files != NULL;
    for (int i = 0; ok && i < k->n_files; i++) {
        const struct tsr_reshard_file *f = &k->files[i];
        ok = json_array_append_new(files,
                                   json_pack("{s:s, s:I, s:I, s:I}", "path", f->path, "needed",
                                             (json_int_t)f->needed, "read", (json_int_t)f->read,
                                             "regions", (json_int_t)f->n_regions)) == 0;
    }
    if (!ok) {
        json_decref(files);
        return NULL;
    }
    return json_pack("{s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:o}", "rank", r, "tp", r % tp, "pp",
                     r / tp % pp, "dp", r / tp / pp, "needed", (json_int_t)k->needed, "read",
                     (json_int_t)k->read, "verified", (json_int_t)k->verified, "files", files);
}

static json_t *layout_json(struct tsr_layout3 l) {
    return json_pack("{s:I, s:I, s:I}", "tp", (json_int_t)l.tp, "pp", (json_int_t)l.pp, "dp",
                     (json_int_t)l.dp);
}

static int print_json(const struct resharding *x) {
    json_t *root = json_object(), *ranks = json_array();
    bool ok = ranks != NULL;
    for (int r = 0; ok && r < x->n_ranks; r++)
        ok = json_array_append_new(ranks, rank_json(x, r)) == 0;
    ok = tsr_json_set(root, "dir", tsr_json_text(x->dir)) && ok;
    ok = tsr_json_set(root, "from", x->from_known ? layout_json(x->from) : json_null()) && ok;
    ok = tsr_json_set(root, "to", layout_json(x->to)) && ok;
    ok = tsr_json_set(root, "tensor_bytes", json_integer((json_int_t)x->held)) && ok;
    ok = tsr_json_set(root, "needed", json_integer((json_int_t)x->needed)) && ok;
    ok = tsr_json_set(root, "read", json_integer((json_int_t)x->read)) && ok;
    ok = tsr_json_set(root, "verified", json_integer((json_int_t)x->verified)) && ok;
    ok = tsr_json_set(root, "gap_amplification", json_real(ratio(x->read, x->needed))) && ok;
    ok = tsr_json_set(root, "read_amplification", json_real(ratio(x->read, x->held))) && ok;
    ok = tsr_json_set(root, "ranks", ranks) && ok;
    if (ok)
        return tsr_print_json(root);
    json_decref(root);
    return tsr_fail(TSR_ENOMEM, "no memory for the report");
}

static int reshard(struct resharding *x) {
    TSR_TRY(tsr_model_load(&x->model, x->dir));
    int rc = check_layout(x);
    if (rc == 0)
        rc = plan_ranks(x);
    if (rc == 0 && x->json)
        rc = print_json(x);
    else if (rc == 0)
        print_text(x);
    for (int r = 0; r < x->n_ranks; r++)
        tsr_reshard_free(&x->ranks[r]);
    free(x->ranks);
    tsr_model_free(&x->model);
    return rc;
}

int tsr_ckpt_reshard(int argc, char **argv) {
    struct resharding x = {0};
    const char *to = NULL;
    const struct tsr_option options[] = {
        {"to", 0, TSR_OPT_STRING, &to, "LAYOUT", 0, 0, "tp=N,pp=N,dp=N (required)"},
        {"json", 0, TSR_OPT_FLAG, &x.json, NULL, 0, 0, "one object, with every rank and file"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera ckpt reshard",
        .usage = "CHECKPOINT_DIR --to tp=2,pp=2,dp=1 [--json]",
        .about =
            "Any layout resumes from any other's checkpoint: this prints what each rank would\n"
            "read of which file. \"needs\" is the weights that it holds and the moments that it\n"
            "owns; \"reads\" has the short gaps between rows that are cheaper to read over than\n"
            "to skip. Nothing is read but headers.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 1,
        .max_args = 1,
    };
    int n_args, rc = tsr_options_parse(&cl, argc, argv, &x.dir, &n_args);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (!to)
        return tsr_fail(TSR_EUSAGE, "--to LAYOUT is missing; usage: %s %s", cl.command, cl.usage);
    TSR_TRY(parse_layout(to, &x.to));
    return reshard(&x);
}
