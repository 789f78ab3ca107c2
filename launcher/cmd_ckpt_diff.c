// `tessera ckpt diff`: what is different between two checkpoints.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/progress_bar.h"
#include "core/run_stamp.h"
#include "launcher/ckpt.h"
#include "launcher/ckpt_compare.h"
#include "launcher/options.h"

static const char *const part_names[3] = {"weights", "m", "v"};
static const char *const verdicts[] = {"same", "differs", "only_a", "only_b", "shapes"};

struct diffing {
    bool json, read_all;
    struct tsr_compared a, b;
    struct tsr_bar bar;
    json_t *config, *state, *run, *tensors; // with --json
    int64_t n_settings, n_tensors, n_different, n_by_digest;
    bool no_memory;
};

// ---- settings

// One number, word or value that differs. Absent: NULL.
static void setting(struct diffing *x, json_t *list, const char *where, const char *key,
                    const char *a, const char *b) {
    x->n_settings++;
    if (!x->json) {
        printf("%s %s: %.200s -> %.200s\n", where, key, a ? a : "(absent)", b ? b : "(absent)");
        return;
    }
    json_t *o = json_object();
    bool ok = tsr_json_set(o, "key", tsr_json_text(key));
    ok = tsr_json_set(o, "a", a ? tsr_json_text(a) : json_null()) && ok;
    ok = tsr_json_set(o, "b", b ? tsr_json_text(b) : json_null()) && ok;
    x->no_memory |= json_array_append_new(list, o) < 0 || !ok;
}

// Keys of one object that the other lacks or has otherwise; `both`: keys of both are told, too.
static void compare_keys(struct diffing *x, json_t *left, json_t *right, bool swapped) {
    const char *key;
    json_t *value;
    json_object_foreach(left, key, value) {
        json_t *other = json_object_get(right, key);
        if ((other && swapped) || (other && json_equal(value, other)))
            continue;
        char *p = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        char *q = other ? json_dumps(other, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
        x->no_memory |= !p || (other && !q);
        setting(x, x->config, "config.json", key, swapped ? q : p, swapped ? p : q);
        free(p);
        free(q);
    }
}

static void compare_configs(struct diffing *x) {
    json_t *a = json_loads(x->a.model.config_json, 0, NULL);
    json_t *b = json_loads(x->b.model.config_json, 0, NULL);
    x->no_memory |= !a || !b; // both were read before
    if (a && b) {
        compare_keys(x, a, b, false);
        compare_keys(x, b, a, true);
    }
    json_decref(a);
    json_decref(b);
}

static void compare_numbers(struct diffing *x) {
    const struct tsr_state *a = &x->a.state, *b = &x->b.state;
    const struct {
        const char *key;
        int64_t a, b;
    } numbers[] = {
        {"step", a->step, b->step},
        {"updates", a->updates, b->updates},
        {"sequences", a->sequences, b->sequences},
        {"seed", a->seed, b->seed},
        {"virtual_shards", a->virtual_shards, b->virtual_shards},
        {"virtual_replicas", a->virtual_replicas, b->virtual_replicas},
        {"n_params", a->n_params, b->n_params},
        {"guard.skips", a->guard.skips, b->guard.skips},
        {"guard.rollbacks", a->guard.rollbacks, b->guard.rollbacks},
        {"guard.retries", a->guard.retries, b->guard.retries},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char p[32], q[32];
        snprintf(p, sizeof p, "%" PRId64, numbers[i].a);
        snprintf(q, sizeof q, "%" PRId64, numbers[i].b);
        if (numbers[i].a != numbers[i].b)
            setting(x, x->state, "state", numbers[i].key, p, q);
    }
}

static int run_field(void *arg, const char *field, const char *a, const char *b) {
    struct diffing *x = arg;
    setting(x, x->run, "run", field, a, b);
    return 0;
}

static int compare_runs(struct diffing *x) {
    struct tsr_run a, b;
    TSR_TRY(tsr_run_read_stamp(&a, x->a.state.run_yaml, x->a.dir));
    int rc = tsr_run_read_stamp(&b, x->b.state.run_yaml, x->b.dir);
    if (rc == 0) {
        rc = tsr_run_each_difference(&a, &b, run_field, x);
        tsr_run_free(&b);
    }
    tsr_run_free(&a);
    return rc;
}

// ---- tensors

static json_t *shape(const int64_t s[2]) {
    return s[0] ? json_pack("[I, I]", (json_int_t)s[0], (json_int_t)s[1]) : json_null();
}

static json_t *describe(const struct tsr_tensor_difference *d) {
    json_t *o = json_pack("{s:s, s:s, s:s}", "part", part_names[d->part], "name", d->name,
                          "verdict", verdicts[d->verdict]);
    bool ok = tsr_json_set(o, "shape_a", shape(d->shape_a));
    ok = tsr_json_set(o, "shape_b", shape(d->shape_b)) && ok;
    if (d->verdict == TSR_DIFFERS) {
        json_t *first =
            json_pack("{s:I, s:I, s:o, s:o}", "row", (json_int_t)d->row, "col", (json_int_t)d->col,
                      "a", tsr_json_real((double)d->a), "b", tsr_json_real((double)d->b));
        ok = tsr_json_set(o, "different", json_integer(d->n_different)) && ok;
        ok = tsr_json_set(o, "max_abs", tsr_json_real(d->max_abs)) && ok;
        ok = tsr_json_set(o, "max_rel", tsr_json_real(d->max_rel)) && ok;
        ok = tsr_json_set(o, "first", first) && ok;
    }
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

static void print_tensor(const struct tsr_tensor_difference *d) {
    const char *part = part_names[d->part];
    if (d->verdict == TSR_ONLY_A || d->verdict == TSR_ONLY_B)
        printf("%s %s: only in the %s\n", part, d->name,
               d->verdict == TSR_ONLY_A ? "first" : "second");
    else if (d->verdict == TSR_SHAPES)
        printf("%s %s: %" PRId64 " x %" PRId64 " -> %" PRId64 " x %" PRId64 "\n", part, d->name,
               d->shape_a[0], d->shape_a[1], d->shape_b[0], d->shape_b[1]);
    else
        printf("%s %s: %" PRId64 " of %" PRId64
               " elements differ, at most by %.3g (relative %.3g); first [%" PRId64 ", %" PRId64
               "]: %.9g -> %.9g\n",
               part, d->name, d->n_different, d->n_elems, d->max_abs, d->max_rel, d->row, d->col,
               (double)d->a, (double)d->b);
}

static int on_tensor(void *arg, const struct tsr_tensor_difference *d) {
    struct diffing *x = arg;
    x->n_tensors++;
    x->n_by_digest += d->by_digest;
    if (d->verdict == TSR_SAME)
        return 0;
    x->n_different++;
    if (x->json)
        x->no_memory |= json_array_append_new(x->tensors, describe(d)) < 0;
    else
        print_tensor(d);
    return 0;
}

static void on_progress(void *arg, uint64_t n_elems, uint64_t total) {
    struct diffing *x = arg;
    (void)total;
    tsr_bar_update(&x->bar, n_elems, NULL);
}

static int compare_tensors(struct diffing *x) {
    const struct tsr_comparison how = {
        .read_all = x->read_all, .arg = x, .each = on_tensor, .progress = on_progress};
    uint64_t total = 0;
    for (int i = 0; i < x->a.table.n; i++)
        total += 3 * (uint64_t)(x->a.table.t[i].rows * x->a.table.t[i].cols);
    tsr_bar_begin(&x->bar, "compare", "elements", 0, total);
    int rc = tsr_compare(&x->a, &x->b, &how);
    tsr_bar_stop(&x->bar);
    return rc;
}

// ---- the command

static int print_json(struct diffing *x) {
    json_t *root = json_object();
    bool equal = x->n_settings == 0 && x->n_different == 0;
    bool ok = tsr_json_set(root, "a", tsr_json_text(x->a.dir));
    ok = tsr_json_set(root, "b", tsr_json_text(x->b.dir)) && ok;
    ok = tsr_json_set(root, "equal", json_boolean(equal)) && ok;
    ok = tsr_json_set(root, "tensors_equal", json_boolean(x->n_different == 0)) && ok;
    ok = tsr_json_set(root, "compared", json_integer(x->n_tensors)) && ok;
    ok = tsr_json_set(root, "different", json_integer(x->n_different)) && ok;
    ok = tsr_json_set(root, "by_digest", json_integer(x->n_by_digest)) && ok;
    ok = tsr_json_set(root, "config", json_incref(x->config)) && ok;
    ok = tsr_json_set(root, "state", json_incref(x->state)) && ok;
    ok = tsr_json_set(root, "run", json_incref(x->run)) && ok;
    ok = tsr_json_set(root, "tensors", json_incref(x->tensors)) && ok;
    if (ok && !x->no_memory)
        return tsr_print_json(root);
    json_decref(root);
    return tsr_fail(TSR_ENOMEM, "no memory for the report");
}

static int diff(struct diffing *x, const char *a, const char *b) {
    TSR_TRY(tsr_compared_open(&x->a, a));
    TSR_TRY(tsr_compared_open(&x->b, b));
    compare_configs(x);
    compare_numbers(x);
    TSR_TRY(compare_runs(x));
    TSR_TRY(compare_tensors(x));
    if (x->json)
        return print_json(x);
    if (x->n_different == 0 && x->n_settings == 0)
        printf("equal: %" PRId64 " tensors\n", x->n_tensors);
    else
        printf("%" PRId64 " of %" PRId64 " tensors and %" PRId64 " settings differ\n",
               x->n_different, x->n_tensors, x->n_settings);
    return x->no_memory ? tsr_fail(TSR_ENOMEM, "no memory for the report") : 0;
}

int tsr_ckpt_diff(int argc, char **argv) {
    struct diffing x = {0};
    const char *args[2];
    const struct tsr_option options[] = {
        {"read", 0, TSR_OPT_FLAG, &x.read_all, NULL, 0, 0,
         "read every tensor, also where both manifests have the same digests"},
        {"json", 0, TSR_OPT_FLAG, &x.json, NULL, 0, 0,
         "one object: equal, config, state, run, tensors"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera ckpt diff",
        .usage = "CHECKPOINT_DIR CHECKPOINT_DIR [--read] [--json]",
        .about =
            "Compares configuration, state and every tensor's weights (the fp32 master), m and\n"
            "v, bit by bit: how many elements differ, by how much at most, and the first of\n"
            "them. What has the same digests in both manifests is not read. The exit code is 0\n"
            "whether they differ or not; with --json, `equal` says it (null: not finite).",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 2,
        .max_args = 2,
    };
    int n_args, rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    x.config = json_array();
    x.state = json_array();
    x.run = json_array();
    x.tensors = json_array();
    rc = x.config && x.state && x.run && x.tensors ? diff(&x, args[0], args[1])
                                                   : tsr_fail(TSR_ENOMEM, "out of memory");
    tsr_compared_close(&x.a);
    tsr_compared_close(&x.b);
    json_decref(x.config);
    json_decref(x.state);
    json_decref(x.run);
    json_decref(x.tensors);
    return rc;
}
