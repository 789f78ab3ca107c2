#include "launcher/coordinator/shard_map.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum {
    MAX_NAME = 1024, // bytes
    MAX_PARTS = 1 << 16,
    MAX_TENSORS = 1 << 20,
    MAX_REGIONS = 1 << 26, // of all ranks
    MAX_STRIPS = 1 << 28,  // steps of one check
};
static const uint64_t MAX_ELEMENTS = UINT64_C(1) << 60;

int tsr_shard_maps_init(struct tsr_shard_maps *m, int world) {
    *m = (struct tsr_shard_maps){.world = world, .changed = true};
    m->ranks = calloc((size_t)world, sizeof *m->ranks);
    return m->ranks ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the shard maps of %d ranks", world);
}

void tsr_shard_maps_free(struct tsr_shard_maps *m) {
    for (int r = 0; m->ranks && r < m->world; r++)
        free(m->ranks[r].v);
    free(m->ranks);
    free(m->tensors);
    tsr_strmap_free(&m->names);
    *m = (struct tsr_shard_maps){0};
}

static void forget(struct tsr_shard_maps *m, struct tsr_rank_shards *r) {
    m->n_regions -= r->n;
    free(r->v);
    *r = (struct tsr_rank_shards){0};
}

// The index of a tensor, new or known.
static int intern(struct tsr_shard_maps *m, int rank, const Tessera__Checkpoint__TensorShards *t,
                  uint32_t *index) {
    size_t before = m->names.n;
    if (before == m->tensors_cap) {
        size_t cap = before ? 2 * before : 64;
        struct tsr_shard_tensor *v = realloc(m->tensors, cap * sizeof *v);
        if (!v)
            return tsr_fail(TSR_ENOMEM, "no memory for a shard map's tensors");
        m->tensors = v;
        m->tensors_cap = cap;
    }
    TSR_TRY(tsr_strmap_add(&m->names, t->name, strlen(t->name), index));
    if (*index == before)
        m->tensors[before] = (struct tsr_shard_tensor){t->rows, t->cols, t->frozen, (uint32_t)rank};
    return 0;
}

static int check_tensor(const struct tsr_shard_maps *m, int rank,
                        const Tessera__Checkpoint__TensorShards *t) {
    uint64_t n;
    size_t len = strlen(t->name);
    if (len == 0 || len > MAX_NAME)
        return tsr_fail(TSR_EREQUEST, "shard map of rank %d: a tensor's name has %zu bytes", rank,
                        len);
    if (__builtin_mul_overflow(t->rows, t->cols, &n) || n > MAX_ELEMENTS)
        return tsr_fail(TSR_EREQUEST,
                        "shard map of rank %d: %s has %" PRIu64 " x %" PRIu64 " elements", rank,
                        t->name, t->rows, t->cols);
    if (m->names.n >= MAX_TENSORS || t->n_regions > MAX_REGIONS - m->n_regions)
        return tsr_fail(TSR_EREQUEST, "shard map of rank %d: too many tensors or regions", rank);
    return 0;
}

static int grow(struct tsr_rank_shards *r, size_t more) {
    if (more <= r->cap - r->n)
        return 0;
    size_t cap = r->n + more > 2 * r->cap ? r->n + more : 2 * r->cap;
    struct tsr_shard_region *v = realloc(r->v, cap * sizeof *v);
    if (!v)
        return tsr_fail(TSR_ENOMEM, "no memory for a shard map's regions");
    r->v = v;
    r->cap = cap;
    return 0;
}

static int put_tensor(struct tsr_shard_maps *m, int rank,
                      const Tessera__Checkpoint__TensorShards *t) {
    struct tsr_rank_shards *r = &m->ranks[rank];
    uint32_t index = 0;
    TSR_TRY(check_tensor(m, rank, t));
    TSR_TRY(intern(m, rank, t, &index));
    TSR_TRY(grow(r, t->n_regions));
    const struct tsr_shard_tensor *known = &m->tensors[index];
    if (!r->differs &&
        (known->rows != t->rows || known->cols != t->cols || known->frozen != !!t->frozen)) {
        r->differs = true;
        r->shape = (struct tsr_shard_region){.r1 = t->rows, .c1 = t->cols, .tensor = index};
    }
    for (size_t i = 0; i < t->n_regions; i++) {
        const Tessera__Checkpoint__Region *g = t->regions[i];
        if (g->r0 > g->r1 || g->r1 > t->rows || g->c0 > g->c1 || g->c1 > t->cols)
            return tsr_fail(TSR_EREQUEST,
                            "shard map of rank %d: %s has no rows %" PRIu64 " to %" PRIu64
                            ", columns %" PRIu64 " to %" PRIu64,
                            rank, t->name, g->r0, g->r1, g->c0, g->c1);
        uint64_t n = (g->r1 - g->r0) * (g->c1 - g->c0);
        if (n == 0)
            continue;
        r->elements += t->frozen ? n : 3 * n;
        if (r->elements > MAX_ELEMENTS)
            return tsr_fail(TSR_EREQUEST, "shard map of rank %d: too many elements", rank);
        r->v[r->n++] = (struct tsr_shard_region){g->r0, g->r1, g->c0, g->c1, index, (uint32_t)rank};
        m->n_regions++;
    }
    return 0;
}

int tsr_shard_maps_put(struct tsr_shard_maps *m, int rank, const Tessera__Checkpoint__ShardMap *p) {
    struct tsr_rank_shards *r = &m->ranks[rank];
    m->changed = true;
    if (p->part == 0)
        forget(m, r);
    int rc = 0;
    if (p->n_parts == 0 || p->n_parts > MAX_PARTS || p->part != r->parts ||
        (p->part > 0 && p->n_parts != r->n_parts) || p->part >= p->n_parts)
        rc = tsr_fail(TSR_EREQUEST,
                      "shard map of rank %d: part %" PRIu32 " of %" PRIu32 " after %" PRIu32, rank,
                      p->part, p->n_parts, r->parts);
    for (size_t i = 0; rc == 0 && i < p->n_tensors; i++)
        rc = put_tensor(m, rank, p->tensors[i]);
    if (rc < 0) {
        forget(m, r);
        return rc;
    }
    r->n_parts = p->n_parts;
    r->parts++;
    return 0;
}

uint64_t tsr_shard_maps_elements(const struct tsr_shard_maps *m, int rank) {
    return m->ranks[rank].elements;
}

// ---- coverage

// What has been covered of one tensor, in strips of columns between which no region begins or ends.
struct sweep {
    uint64_t *cut;   // (n_strips + 1) columns
    uint64_t *next;  // (n_strips) the first row not covered yet
    uint32_t *owner; // (n_strips) of the row before it
    size_t n_strips;
};

static int order_of_cuts(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int order_of_regions(const void *a, const void *b) {
    const struct tsr_shard_region *x = a, *y = b;
    if (x->r0 != y->r0)
        return x->r0 < y->r0 ? -1 : 1;
    if (x->c0 != y->c0)
        return x->c0 < y->c0 ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static const char *tensor_name(const struct tsr_shard_maps *m, uint32_t tensor, int *n_bytes) {
    size_t n;
    const char *name = tsr_strmap_at(&m->names, tensor, &n);
    *n_bytes = n > 200 ? 200 : (int)n;
    return name;
}

static enum tsr_cover say_hole(struct tsr_shard_maps *m, uint32_t tensor, const struct sweep *w,
                               size_t strip, uint64_t to) {
    int n;
    const char *name = tensor_name(m, tensor, &n);
    snprintf(m->text, sizeof m->text,
             "nobody owns rows %" PRIu64 " to %" PRIu64 ", columns %" PRIu64 " to %" PRIu64
             " of %.*s",
             w->next[strip], to, w->cut[strip], w->cut[strip + 1], n, name);
    return TSR_COVER_HOLE;
}

static enum tsr_cover say_overlap(struct tsr_shard_maps *m, const struct tsr_shard_region *g,
                                  const struct sweep *w, size_t strip) {
    int n;
    const char *name = tensor_name(m, g->tensor, &n);
    snprintf(m->text, sizeof m->text,
             "ranks %" PRIu32 " and %" PRIu32 " both own row %" PRIu64 ", columns %" PRIu64
             " to %" PRIu64 " of %.*s",
             w->owner[strip], g->rank, g->r0, w->cut[strip], w->cut[strip + 1], n, name);
    return TSR_COVER_OVERLAP;
}

static size_t strip_of(const struct sweep *w, uint64_t column) {
    const uint64_t *at = bsearch(&column, w->cut, w->n_strips + 1, sizeof *w->cut, order_of_cuts);
    return (size_t)(at - w->cut);
}

// Regions come by their first row, so a strip whose next row lies before it will stay a hole.
static enum tsr_cover sweep_tensor(struct tsr_shard_maps *m, uint32_t tensor,
                                   const struct tsr_shard_region *g, size_t n, struct sweep *w,
                                   uint64_t *n_steps) {
    for (size_t i = 0; i < n; i++) {
        size_t from = strip_of(w, g[i].c0), to = strip_of(w, g[i].c1);
        *n_steps += to - from;
        if (*n_steps > MAX_STRIPS) {
            snprintf(m->text, sizeof m->text, "the shard map is cut too finely to be checked");
            return TSR_COVER_FAILED;
        }
        for (size_t s = from; s < to; s++) {
            if (w->next[s] > g[i].r0)
                return say_overlap(m, &g[i], w, s);
            if (w->next[s] < g[i].r0)
                return say_hole(m, tensor, w, s, g[i].r0);
            w->next[s] = g[i].r1;
            w->owner[s] = g[i].rank;
        }
    }
    for (size_t s = 0; s < w->n_strips; s++)
        if (w->next[s] < m->tensors[tensor].rows)
            return say_hole(m, tensor, w, s, m->tensors[tensor].rows);
    return TSR_COVER_WHOLE;
}

static enum tsr_cover say_no_memory(struct tsr_shard_maps *m) {
    snprintf(m->text, sizeof m->text, "no memory to check the shard map");
    return TSR_COVER_FAILED;
}

// g: the (n) regions of one tensor, in any order.
static enum tsr_cover check_one(struct tsr_shard_maps *m, uint32_t tensor,
                                struct tsr_shard_region *g, size_t n, uint64_t *n_steps) {
    const struct tsr_shard_tensor *t = &m->tensors[tensor];
    if (t->rows == 0 || t->cols == 0)
        return TSR_COVER_WHOLE;
    struct sweep w = {.cut = malloc((2 * n + 2) * sizeof *w.cut)};
    if (!w.cut)
        return say_no_memory(m);
    size_t k = 0;
    w.cut[k++] = 0;
    w.cut[k++] = t->cols;
    for (size_t i = 0; i < n; i++) {
        w.cut[k++] = g[i].c0;
        w.cut[k++] = g[i].c1;
    }
    qsort(w.cut, k, sizeof *w.cut, order_of_cuts);
    for (size_t i = 1; i < k; i++)
        if (w.cut[i] != w.cut[w.n_strips])
            w.cut[++w.n_strips] = w.cut[i];
    w.next = calloc(w.n_strips, sizeof *w.next);
    w.owner = calloc(w.n_strips, sizeof *w.owner);
    qsort(g, n, sizeof *g, order_of_regions);
    enum tsr_cover found =
        w.next && w.owner ? sweep_tensor(m, tensor, g, n, &w, n_steps) : say_no_memory(m);
    free(w.cut);
    free(w.next);
    free(w.owner);
    return found;
}

static enum tsr_cover check_ranks(struct tsr_shard_maps *m) {
    for (int r = 0; r < m->world; r++) {
        const struct tsr_rank_shards *s = &m->ranks[r];
        if (s->n_parts == 0 || s->parts < s->n_parts) {
            snprintf(m->text, sizeof m->text,
                     "rank %d published %" PRIu32 " of %" PRIu32 " parts of its shard map", r,
                     s->parts, s->n_parts);
            return TSR_COVER_NO_MAP;
        }
        if (s->differs) {
            const struct tsr_shard_tensor *t = &m->tensors[s->shape.tensor];
            int n;
            const char *name = tensor_name(m, s->shape.tensor, &n);
            snprintf(m->text, sizeof m->text,
                     "%.*s is %" PRIu64 " x %" PRIu64 " to rank %" PRIu32 " and %" PRIu64
                     " x %" PRIu64 " to rank %d, or frozen to one of them",
                     n, name, t->rows, t->cols, t->rank, s->shape.r1, s->shape.c1, r);
            return TSR_COVER_DIFFER;
        }
    }
    return TSR_COVER_WHOLE;
}

// Sorts all regions by tensor, then checks one after another.
static enum tsr_cover check_tensors(struct tsr_shard_maps *m) {
    size_t n_tensors = m->names.n;
    size_t *end = calloc(n_tensors + 2, sizeof *end);
    struct tsr_shard_region *all = malloc((m->n_regions + 1) * sizeof *all);
    enum tsr_cover found = end && all ? TSR_COVER_WHOLE : say_no_memory(m);
    if (found == TSR_COVER_WHOLE) {
        for (int r = 0; r < m->world; r++)
            for (size_t i = 0; i < m->ranks[r].n; i++)
                end[m->ranks[r].v[i].tensor + 2]++;
        for (size_t t = 2; t < n_tensors + 2; t++)
            end[t] += end[t - 1];
        for (int r = 0; r < m->world; r++)
            for (size_t i = 0; i < m->ranks[r].n; i++)
                all[end[m->ranks[r].v[i].tensor + 1]++] = m->ranks[r].v[i];
    }
    uint64_t n_steps = 0;
    for (size_t t = 0; found == TSR_COVER_WHOLE && t < n_tensors; t++)
        found = check_one(m, (uint32_t)t, all + end[t], end[t + 1] - end[t], &n_steps);
    free(end);
    free(all);
    return found;
}

enum tsr_cover tsr_shard_maps_check(struct tsr_shard_maps *m) {
    if (!m->changed)
        return m->found;
    m->found = check_ranks(m);
    if (m->found == TSR_COVER_WHOLE)
        m->found = check_tensors(m);
    m->changed = m->found == TSR_COVER_FAILED; // perhaps there is memory next time
    return m->found;
}
