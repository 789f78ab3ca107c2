// `tessera layout-check`: the same steps in two layouts, compared gradient by gradient.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/commands.h"
#include "launcher/json_out.h"
#include "launcher/layout_check.h"
#include "launcher/options.h"

struct report {
    json_t *steps;
    struct tsr_difference first; // of the first step that differs, else of the last one
    int64_t step;                // 0: all are equal
    double distance;             // the largest of all steps
    char far[112];
};

// Overrides of a side, in an order in which the last one counts.
static void list_overrides(struct tsr_check *c, struct tsr_side *s, const char *const *given, int n,
                           bool other) {
    for (int i = 0; i < n; i++)
        s->overrides[s->n_overrides++] = given[i];
    for (int i = 0; other && i < c->n_extra; i++)
        s->overrides[s->n_overrides++] = c->extra[i];
}

static int open_side(struct tsr_check *c, struct tsr_side *s, const char *command) {
    struct tsr_planned *p = &s->plan;
    const struct tsr_planned_for here = {0};
    TSR_TRY(tsr_planned_open(p, command, c->path, s->overrides, s->n_overrides, &here));
    const struct tsr_mesh *m = &p->plan.mesh;
    const bool device = p->fill.device_bytes > p->room.device_bytes;
    char need[32], have[32];
    snprintf(s->text, sizeof s->text, "tp=%d pp=%d dp=%d", m->tp, m->pp, m->dp);
    if (p->fits)
        return 0;
    return tsr_fail(
        TSR_ENOMEM, "%s needs %s of %s, but %s are available", s->text,
        tsr_bytes_text(need, (double)(device ? p->fill.device_bytes : p->fill.host_bytes)),
        device ? "a device's memory" : "memory",
        tsr_bytes_text(have, (double)(device ? p->room.device_bytes : p->room.host_bytes)));
}

static int check_sides(struct tsr_check *c) {
    const struct tsr_run *a = &c->side[0].plan.job.run, *b = &c->side[1].plan.job.run;
    const struct tsr_mesh *m = &c->side[0].plan.job.mesh, *o = &c->side[1].plan.job.mesh;
    c->exact = a->parallel.exact && b->parallel.exact;
    if (c->exact && (m->V != o->V || m->W != o->W))
        return tsr_fail(TSR_ECONFIG,
                        "these layouts add in different orders: virtual_shards %d and %d, "
                        "virtual_replicas %d and %d",
                        m->V, o->V, m->W, o->W);
    return 0;
}

// A folder for both sides' gradients, with room for them.
static int make_scratch(struct tsr_check *c, const char *below) {
    struct statvfs v;
    char need_text[32], have[32];
    double params = (double)tsr_model_n_params(&c->side[0].plan.job.model);
    double need = 2.0 * 4.0 * params * (double)c->steps * 1.1;
    const char *tmp = getenv("TMPDIR");
    below = below ? below : tmp && *tmp ? tmp : "/tmp";
    TSR_TRY(tsr_path_join(c->scratch, below, "tessera-layout-XXXXXX"));
    if (!mkdtemp(c->scratch)) {
        c->scratch[0] = 0;
        return tsr_fail(TSR_EIO, "%s: cannot make a folder: %m", below);
    }
    double free_ = statvfs(c->scratch, &v) == 0 ? (double)v.f_bavail * (double)v.f_frsize : need;
    if (free_ < need)
        return tsr_fail(TSR_ENOSPC,
                        "%s: %lld steps of gradients need %s, but %s are free; "
                        "--scratch and --steps change that",
                        below, (long long)c->steps, tsr_bytes_text(need_text, need),
                        tsr_bytes_text(have, free_));
    TSR_TRY(tsr_path_join(c->side[0].dir, c->scratch, "a"));
    return tsr_path_join(c->side[1].dir, c->scratch, "b");
}

static int compare_step(const struct tsr_check *c, const struct tsr_tensor_table *tt, int64_t step,
                        struct tsr_difference *d) {
    struct tsr_gradients g[2] = {{0}, {0}};
    int rc = 0;
    for (int k = 0; rc == 0 && k < 2; k++)
        rc = tsr_gradients_open(&g[k], c->side[k].dir, step, c->side[k].plan.plan.mesh.world);
    if (rc == 0)
        rc = tsr_gradients_compare(d, &g[0], &g[1], tt);
    tsr_gradients_close(&g[0]);
    tsr_gradients_close(&g[1]);
    return rc;
}

static void add_step(struct report *r, const struct tsr_difference *d, int64_t step) {
    bool equal = tsr_gradients_equal(d);
    json_array_append_new(r->steps,
                          json_pack("{s:I, s:[o,o], s:[o,o], s:i, s:o, s:b}", "step",
                                    (json_int_t)step, "loss", json_real(d->loss[0]),
                                    json_real(d->loss[1]), "grad_norm", json_real(d->grad_norm[0]),
                                    json_real(d->grad_norm[1]), "tensors_different", d->n_different,
                                    "distance", json_real(d->distance), "equal", equal));
    if (r->step == 0)
        r->first = *d;
    if (r->step == 0 && !equal)
        r->step = step;
    if (!(d->distance <= r->distance)) {
        r->distance = d->distance;
        snprintf(r->far, sizeof r->far, "%s", d->far);
    }
}

static int compare(const struct tsr_check *c, struct report *r) {
    struct tsr_tensor_table tt;
    TSR_TRY(tsr_tensor_table_build(&tt, &c->side[0].plan.job.model));
    int rc = 0;
    for (int64_t step = 1; rc == 0 && step <= c->steps; step++) {
        struct tsr_difference d;
        rc = compare_step(c, &tt, step, &d);
        if (rc == 0)
            add_step(r, &d, step);
    }
    tsr_tensor_table_free(&tt);
    return rc;
}

// ---- the report

static uint32_t bits_of(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static void print_difference(const struct tsr_check *c, const struct report *r) {
    const struct tsr_difference *d = &r->first;
    const char *a = c->side[0].text, *b = c->side[1].text;
    printf("step %lld is the first that differs: %s against %s\n", (long long)r->step, a, b);
    printf("  loss      %.17g and %.17g%s\n", d->loss[0], d->loss[1],
           d->loss[0] == d->loss[1] ? "" : "  differs");
    printf("  grad norm %.17g and %.17g%s\n", d->grad_norm[0], d->grad_norm[1],
           d->grad_norm[0] == d->grad_norm[1] ? "" : "  differs");
    if (d->n_different == 0)
        return;
    const char *side = d->within == 2 ? b : a;
    printf("  %d of %d gradients differ; the first is %s", d->n_different, d->n_tensors, d->name);
    if (d->layer >= 0)
        printf(" (layer %d)", d->layer);
    printf(", row %lld, column %lld:\n    %.9g (%08x) and %.9g (%08x)%s%s\n",
           (long long)d->first.row, (long long)d->first.col, (double)d->first.a,
           bits_of(d->first.a), (double)d->first.b, bits_of(d->first.b),
           d->within ? " on two ranks of " : "", d->within ? side : "");
    if (strcmp(d->last, d->name) != 0)
        printf("  the last, which backward came by first, is %s\n", d->last);
}

static void print_report(const struct tsr_check *c, const struct report *r) {
    const char *a = c->side[0].text, *b = c->side[1].text;
    if (r->step)
        print_difference(c, r);
    else
        printf("%s and %s are equal to the last bit: loss, gradient norm and %d gradients over "
               "%lld step%s\n",
               a, b, r->first.n_tensors, (long long)c->steps, c->steps == 1 ? "" : "s");
    if (r->step)
        printf("  the largest distance of a gradient is %.3g of its norm: %s\n", r->distance,
               r->far);
    if (r->step && !c->exact)
        printf("  (parallel.exact is off: the sums may differ in their last bits)\n");
}

static json_t *first_json(const struct report *r) {
    const struct tsr_difference *d = &r->first;
    if (!r->step || !d->n_different)
        return json_null();
    return json_pack("{s:s, s:i, s:I, s:I, s:I, s:o, s:o, s:i, s:s}", "tensor", d->name, "layer",
                     d->layer, "step", (json_int_t)r->step, "row", (json_int_t)d->first.row,
                     "column", (json_int_t)d->first.col, "a", tsr_json_real((double)d->first.a),
                     "b", tsr_json_real((double)d->first.b), "within", d->within, "last", d->last);
}

static int print_json(const struct tsr_check *c, struct report *r) {
    json_t *o = json_pack("{s:b, s:b, s:[s,s], s:i, s:O, s:o, s:o, s:s}", "equal", r->step == 0,
                          "exact", c->exact, "layouts", c->side[0].text, c->side[1].text, "tensors",
                          r->first.n_tensors, "steps", r->steps, "first", first_json(r), "distance",
                          tsr_json_real(r->distance), "farthest", r->far);
    return tsr_print_json(o);
}

static int check(struct tsr_check *c, struct report *r, const char *command, const char *scratch,
                 bool json, int *exit_code) {
    for (int k = 0; k < 2; k++)
        TSR_TRY(open_side(c, &c->side[k], command));
    TSR_TRY(check_sides(c));
    TSR_TRY(make_scratch(c, scratch));
    for (int k = 0; k < 2; k++) {
        tsr_info("%s: %lld step%s on %d rank%s", c->side[k].text, (long long)c->steps,
                 c->steps == 1 ? "" : "s", c->side[k].plan.plan.mesh.world,
                 c->side[k].plan.plan.mesh.world == 1 ? "" : "s");
        TSR_TRY(tsr_check_run(c, &c->side[k], exit_code));
    }
    r->steps = json_array();
    TSR_TRY(compare(c, r));
    if (json)
        return print_json(c, r);
    print_report(c, r);
    return 0;
}

static int run(struct tsr_check *c, const char *command, const char *scratch, bool json) {
    struct report r = {0};
    int exit_code = 0, rc = check(c, &r, command, scratch, json, &exit_code);
    json_decref(r.steps);
    for (int k = 0; k < 2; k++)
        tsr_planned_close(&c->side[k].plan);
    if (c->scratch[0])
        tsr_remove_tree(c->scratch);
    if (exit_code != 0) // its ranks have said why
        return exit_code > 128 ? tsr_exit_code(TSR_EPEER) : exit_code;
    if (rc < 0)
        return tsr_report(command, rc);
    return r.step && c->exact ? TSR_EXIT_BUG : 0;
}

int tsr_cmd_layout_check(int argc, char **argv) {
    const char *args[TSR_CHECK_MAX_ARGS + 1], *against = NULL, *scratch = NULL;
    int n_args;
    int64_t steps = 2;
    bool json = false;
    const struct tsr_option options[] = {
        {"against", 'a', TSR_OPT_STRING, &against, "FIELDS", 0, 0,
         "the other layout, like tp=1,pp=1,dp=1; other fields of parallel, too"},
        {"steps", 'n', TSR_OPT_INT, &steps, "N", 1, 1000, "training steps to compare (2)"},
        {"scratch", 0, TSR_OPT_STRING, &scratch, "DIR", 0, 0,
         "where gradients are written meanwhile ($TMPDIR or /tmp)"},
        {"json", 0, TSR_OPT_FLAG, &json, NULL, 0, 0, "one JSON object"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera layout-check",
        .usage = "RUN.yaml --against tp=1,pp=1,dp=1 [key=value …] [options]",
        .about =
            "Trains a few steps from the first weights in the run file's layout and in another,\n"
            "each under an mpirun of its own on this machine, and compares loss, gradient norm\n"
            "and every gradient. Names the first tensor that differs. Tokens are random when the\n"
            "run has no data. In an exact run a difference is a bug of tessera or of the machine\n"
            "(exit code 70); with parallel.exact off the distance is reported.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = TSR_CHECK_MAX_ARGS + 1};
    if (argc >= 5 && strcmp(argv[1], "--rank") == 0)
        return tsr_check_rank(argc - 2, argv + 2);
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    struct tsr_check *c = calloc(1, sizeof *c);
    if (!c)
        rc = tsr_fail(TSR_ENOMEM, "no memory for a comparison");
    else if (tsr_comm_under_mpi())
        rc = tsr_fail(TSR_EUSAGE, "it starts mpirun itself: run it without");
    else if (!against)
        rc = tsr_fail(TSR_EUSAGE, "--against is missing: expected a layout like tp=1,pp=1,dp=1");
    else
        rc = tsr_check_against(c, against);
    int code;
    if (rc == 0) {
        c->path = args[0];
        c->steps = steps;
        list_overrides(c, &c->side[0], args + 1, n_args - 1, false);
        list_overrides(c, &c->side[1], args + 1, n_args - 1, true);
        code = run(c, cl.command, scratch, json);
    } else {
        code = tsr_report_once(cl.command, rc);
    }
    free(c);
    return code;
}
