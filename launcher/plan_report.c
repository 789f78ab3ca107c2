// How a plan is shown.
#include <stdio.h>
#include "core/error.h"
#include "launcher/json_out.h"
#include "launcher/plan_job.h"

static size_t value_of(const struct tsr_plan_class *c, int purpose) {
    return purpose < TSR_N_MEMORY ? tsr_memory_get(&c->memory, purpose) : c->total;
}

// The classes that hold least and most for a purpose (TSR_N_MEMORY: in all).
static void extremes(const struct tsr_plan *p, int purpose, const struct tsr_plan_class **least,
                     const struct tsr_plan_class **most) {
    *least = *most = &p->classes[0];
    for (int k = 1; k < p->n_classes; k++) {
        const struct tsr_plan_class *c = &p->classes[k];
        if (value_of(c, purpose) < value_of(*least, purpose))
            *least = c;
        if (value_of(c, purpose) > value_of(*most, purpose))
            *most = c;
    }
}

// Whether a purpose's bytes are known at all.
static bool is_known(const struct tsr_run *run, int purpose) {
    return purpose != TSR_MEMORY_kernels || !tsr_plan_on_device(run);
}

static void print_memory(const struct tsr_plan *p, const struct tsr_run *run) {
    printf("\n%-22s %14s %8s %14s %8s\n", "bytes of a rank", "least", "rank", "most", "rank");
    for (int i = 0; i <= TSR_N_MEMORY; i++) {
        const struct tsr_plan_class *least, *most;
        char a[32], b[32];
        extremes(p, i, &least, &most);
        if (!is_known(run, i))
            printf("  %-20s %14s %8s %14s\n", "scratch of kernels", "unknown", "", "unknown");
        if (value_of(most, i) == 0)
            continue;
        printf("  %-20s %14s %8d %14s %8d\n", i < TSR_N_MEMORY ? tsr_memory_texts[i] : "all",
               tsr_bytes_text(a, (double)value_of(least, i)), least->first,
               tsr_bytes_text(b, (double)value_of(most, i)), most->first);
    }
}

static void print_sent(const struct tsr_planned *p, const struct tsr_step_bytes *s) {
    const char *names[] = {"tensor parallel", "pipeline", "data parallel"};
    uint64_t sent[] = {s->tp, s->pp, s->dp};
    printf("\n%-22s %14s %23s\n", "sent in a step", "all ranks", "mean of a rank");
    for (int i = 0; i < 3; i++) {
        char a[32], b[32];
        printf("  %-20s %14s %23s\n", names[i], tsr_bytes_text(a, (double)sent[i]),
               tsr_bytes_text(b, (double)sent[i] / p->plan.mesh.world));
    }
}

static double step_flops(const struct tsr_planned *p) {
    const struct tsr_run *r = &p->job.run;
    return tsr_flops_per_token(&p->job.model, r->data.seq_len) *
           (double)(r->train.global_batch * r->data.seq_len);
}

static void print_advice(const struct tsr_planned *p) {
    const bool device = p->fill.device_bytes > p->room.device_bytes;
    char a[32], b[32];
    printf("\nIt doesn't fit. What would save memory, the cheapest first:\n");
    for (int i = 0; i < p->n_advice; i++) {
        const struct tsr_advice *v = &p->advice[i];
        printf("  %s %-60s a rank %s, a %s %s%s\n", v->fits ? "fits" : "    ", v->change,
               tsr_bytes_text(a, (double)v->rank_bytes), device ? "device" : "host",
               tsr_bytes_text(b, (double)v->scarce_bytes),
               v->other_numbers ? " (other sums: for a new run)" : "");
    }
    if (p->n_advice == 0)
        printf("  nothing that was tried; a smaller model or data.seq_len\n");
}

static void print_room(const struct tsr_planned *p) {
    const struct tsr_room *room = &p->room;
    char a[32], b[32];
    if (room->devices > 0)
        printf("%-22s %14s of %s, %d on a host\n", "memory of a device",
               tsr_bytes_text(a, (double)p->fill.device_bytes),
               room->device_bytes == UINT64_MAX ? "unknown (--device-memory)"
                                                : tsr_bytes_text(b, (double)room->device_bytes),
               room->devices);
    printf("%-22s %14s of %s available\n", "memory of a host",
           tsr_bytes_text(a, (double)p->fill.host_bytes),
           tsr_bytes_text(b, (double)room->host_bytes));
}

void tsr_plan_print(const struct tsr_planned *p) {
    const struct tsr_job *j = &p->job;
    const struct tsr_mesh *m = &j->mesh;
    struct tsr_step_bytes sent;
    printf("%s: %.1f M parameters, %d ranks (tp %d, pp %d, dp %d), %d on a host with %d thread%s "
           "each\n",
           j->run.run.name, (double)tsr_model_n_params(&j->model) * 1e-6, m->world, m->tp, m->pp,
           m->dp, p->opt.per_host, p->opt.threads, p->opt.threads == 1 ? "" : "s");
    print_memory(&p->plan, &j->run);
    if (tsr_traffic_of(&sent, &j->run, &j->model, m) == 0)
        print_sent(p, &sent);
    printf("\n%-22s %13.1f %%\n", "pipeline bubble", 100.0 * tsr_bubble_share(&j->run, m));
    printf("%-22s %14.4g\n", "FLOPs of a step", step_flops(p));
    print_room(p);
    if (!p->fits)
        print_advice(p);
}

// ---- JSON

static json_t *bytes_json(const struct tsr_plan_class *c, const struct tsr_run *run) {
    json_t *o = json_object();
    for (int i = 0; i < TSR_N_MEMORY; i++)
        json_object_set_new(o, tsr_memory_names[i],
                            is_known(run, i) ? json_integer((json_int_t)value_of(c, i))
                                             : json_null());
    json_object_set_new(o, "total", json_integer((json_int_t)c->total));
    json_object_set_new(o, "device_bytes",
                        tsr_plan_on_device(run) ? json_integer((json_int_t)c->memory.slabs)
                                                : json_null());
    return o;
}

static json_t *extremes_json(const struct tsr_plan *p, const struct tsr_run *run) {
    json_t *o = json_object();
    for (int i = 0; i <= TSR_N_MEMORY; i++) {
        const struct tsr_plan_class *least, *most;
        extremes(p, i, &least, &most);
        if (!is_known(run, i)) {
            json_object_set_new(o, tsr_memory_names[i], json_null());
            continue;
        }
        json_object_set_new(o, i < TSR_N_MEMORY ? tsr_memory_names[i] : "total",
                            json_pack("{s:I, s:i, s:I, s:i}", "min", (json_int_t)value_of(least, i),
                                      "min_rank", least->first, "max",
                                      (json_int_t)value_of(most, i), "max_rank", most->first));
    }
    return o;
}

// A number that runs on devices have, or null.
static json_t *device_json(const struct tsr_room *room, uint64_t n) {
    return room->devices > 0 && n != UINT64_MAX ? json_integer((json_int_t)n) : json_null();
}

static json_t *advice_json(const struct tsr_planned *p) {
    json_t *list = json_array();
    for (int i = 0; i < p->n_advice; i++) {
        const struct tsr_advice *v = &p->advice[i];
        json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:o, s:b, s:b}", "change", v->change,
                                              "rank_bytes", (json_int_t)v->rank_bytes, "host_bytes",
                                              (json_int_t)v->fill.host_bytes, "device_bytes",
                                              device_json(&p->room, v->fill.device_bytes), "fits",
                                              v->fits, "other_numbers", v->other_numbers));
    }
    return list;
}

static json_t *ranks_json(const struct tsr_plan *p, const struct tsr_run *run, bool classes) {
    json_t *list = json_array();
    for (int k = 0; classes && k < p->n_classes; k++)
        json_array_append_new(list, bytes_json(&p->classes[k], run));
    for (int r = 0; !classes && r < p->mesh.world; r++)
        json_array_append_new(list, json_integer(p->class_of[r]));
    return list;
}

int tsr_plan_print_json(const struct tsr_planned *p) {
    const struct tsr_job *j = &p->job;
    const struct tsr_mesh *m = &j->mesh;
    struct tsr_step_bytes sent;
    TSR_TRY(tsr_traffic_of(&sent, &j->run, &j->model, m));
    json_t *o = json_pack(
        "{s:{s:i, s:i, s:i}, s:i, s:i, s:i, s:o, s:o, s:o, s:{s:I, s:I, s:I}, s:f, s:f, s:s, s:I, "
        "s:o, s:o, s:o, s:I, s:b, s:o}",
        "layout", "tp", m->tp, "pp", m->pp, "dp", m->dp, "world", m->world, "ranks_per_host",
        p->opt.per_host, "threads", p->opt.threads, "bytes", extremes_json(&p->plan, &j->run),
        "classes", ranks_json(&p->plan, &j->run, true), "class_of_rank",
        ranks_json(&p->plan, &j->run, false), "bytes_sent", "tp", (json_int_t)sent.tp, "pp",
        (json_int_t)sent.pp, "dp", (json_int_t)sent.dp, "bubble", tsr_bubble_share(&j->run, m),
        "flops_per_step", step_flops(p), "flops_formula", tsr_flops_formula, "host_bytes",
        (json_int_t)p->fill.host_bytes, "devices", device_json(&p->room, (uint64_t)p->room.devices),
        "device_bytes", device_json(&p->room, p->fill.device_bytes), "device_memory_bytes",
        device_json(&p->room, p->room.device_bytes), "memory_bytes", (json_int_t)p->room.host_bytes,
        "fits", p->fits, "advice", advice_json(p));
    return tsr_print_json(o);
}
