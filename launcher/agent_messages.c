#include "launcher/agent_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { PART_BYTES = 64 << 10 }; // of a shard map

_Static_assert(sizeof(struct tsr_digest) == 16, "digests in a row are their bytes in a message");

void tsr_map_free(Tessera__Checkpoint__ShardMap **parts, int n_parts) {
    for (int i = 0; i < n_parts; i++)
        tessera__checkpoint__shard_map__free_unpacked(parts[i], NULL);
    free(parts);
}

// Tensors from `first` on that make one part; at least one.
static size_t fit(const Tessera__Checkpoint__ShardMap *map, size_t first) {
    size_t bytes = 0, end = first;
    do
        bytes += protobuf_c_message_get_packed_size(&map->tensors[end++]->base) + 8;
    while (end < map->n_tensors && bytes < PART_BYTES);
    return end - first;
}

int tsr_map_split(const Tessera__Checkpoint__ShardMap *map, Tessera__Checkpoint__ShardMap ***parts,
                  int *n_parts) {
    size_t count = map->n_tensors == 0, at = 0;
    for (size_t i = 0; i < map->n_tensors; i += fit(map, i))
        count++;
    Tessera__Checkpoint__ShardMap **list = calloc(count, sizeof *list);
    int n = 0;
    for (; list && n < (int)count; n++) {
        Tessera__Checkpoint__ShardMap part = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
        part.n_tensors = map->n_tensors == 0 ? 0 : fit(map, at);
        part.tensors = map->tensors + at;
        part.part = (uint32_t)n;
        part.n_parts = (uint32_t)count;
        list[n] = (Tessera__Checkpoint__ShardMap *)tsr_link_copy(&part.base);
        if (!list[n])
            break;
        at += part.n_tensors;
    }
    if (!list || n < (int)count) {
        tsr_map_free(list, n);
        return tsr_fail(TSR_ENOMEM, "no memory for the shard map");
    }
    *parts = list;
    *n_parts = n;
    return 0;
}

int tsr_said_plan_set(struct tsr_said_plan *s, struct tsr_save_plan *plan, uint64_t step,
                      uint32_t attempt) {
    tsr_said_plan_free(s);
    s->plan = *plan;
    *plan = (struct tsr_save_plan){0};
    size_t n = (size_t)s->plan.n_files;
    s->files = calloc(n + 1, sizeof *s->files);
    s->list = calloc(n + 1, sizeof *s->list);
    if (!s->files || !s->list)
        return tsr_fail(TSR_ENOMEM, "no memory for the plan of a checkpoint");
    for (size_t i = 0; i < n; i++) {
        tessera__checkpoint__planned_file__init(&s->files[i]);
        s->files[i].path = s->plan.files[i].path;
        s->files[i].size = s->plan.files[i].size;
        s->list[i] = &s->files[i];
    }
    tessera__checkpoint__save_plan__init(&s->message);
    s->message.step = step;
    s->message.attempt = attempt;
    s->message.temporary = s->plan.temporary;
    s->message.range_bytes = s->plan.range_bytes;
    s->message.elements = s->plan.elements;
    s->message.n_files = n;
    s->message.files = s->list;
    size_t bytes = protobuf_c_message_get_packed_size(&s->message.base);
    if (bytes > TSR_MAX_PAYLOAD)
        return tsr_fail(TSR_EIO,
                        "the plan of a checkpoint of %zu files takes %zu bytes, at most %d "
                        "fit a frame: expected fewer, larger files",
                        n, bytes, TSR_MAX_PAYLOAD);
    s->there = true;
    return 0;
}

void tsr_said_plan_free(struct tsr_said_plan *s) {
    tsr_save_plan_free(&s->plan);
    free(s->files);
    free(s->list);
    *s = (struct tsr_said_plan){0};
}

static int list_ranges(struct tsr_said_vote *s) {
    size_t n = (size_t)s->vote.n_ranges;
    s->ranges = calloc(n + 1, sizeof *s->ranges);
    s->list = calloc(n + 1, sizeof *s->list);
    if (!s->ranges || !s->list)
        return tsr_fail(TSR_ENOMEM, "no memory for the digests of a checkpoint");
    for (size_t i = 0; i < n; i++) {
        const struct tsr_range_digests *r = &s->vote.ranges[i];
        tessera__checkpoint__range_digests__init(&s->ranges[i]);
        s->ranges[i].first = r->first;
        s->ranges[i].digests.data = (uint8_t *)r->digests;
        s->ranges[i].digests.len = (size_t)r->n * sizeof *r->digests;
        s->list[i] = &s->ranges[i];
    }
    return 0;
}

static void fill(struct tsr_said_vote *s, uint64_t step, uint32_t attempt, int code) {
    size_t n = code == 0 ? (size_t)s->vote.n_ranges : 0;
    uint32_t exit_code = code == 0 ? 0 : (uint32_t)tsr_exit_code(code);
    tessera__checkpoint__save_vote__init(&s->as_vote);
    s->as_vote.step = step;
    s->as_vote.attempt = attempt;
    s->as_vote.ok = code == 0;
    s->as_vote.error = s->error;
    s->as_vote.exit_code = exit_code;
    s->as_vote.elements = code == 0 ? s->vote.elements : 0;
    s->as_vote.n_ranges = n;
    s->as_vote.ranges = s->list;
    tessera__checkpoint__save_digests__init(&s->as_digests);
    s->as_digests.step = step;
    s->as_digests.attempt = attempt;
    s->as_digests.ok = code == 0;
    s->as_digests.error = s->error;
    s->as_digests.exit_code = exit_code;
    s->as_digests.n_ranges = n;
    s->as_digests.ranges = s->list;
}

void tsr_said_vote_set(struct tsr_said_vote *s, struct tsr_save_vote *vote, uint64_t step,
                       uint32_t attempt, int code, const char *error) {
    tsr_said_vote_free(s);
    s->vote = *vote;
    *vote = (struct tsr_save_vote){0};
    if (code == 0 && (code = list_ranges(s)) < 0)
        error = tsr_error_text();
    fill(s, step, attempt, code);
    size_t bytes = protobuf_c_message_get_packed_size(&s->as_vote.base);
    if (bytes > TSR_MAX_PAYLOAD) {
        code = tsr_fail(TSR_EIO, "the digests of this rank take %zu bytes, at most %d fit a frame",
                        bytes, TSR_MAX_PAYLOAD);
        error = tsr_error_text();
    }
    if (code < 0)
        tsr_frame_text(s->error, sizeof s->error, error);
    fill(s, step, attempt, code);
    s->there = true;
}

void tsr_said_vote_free(struct tsr_said_vote *s) {
    tsr_save_vote_free(&s->vote);
    free(s->ranges);
    free(s->list);
    *s = (struct tsr_said_vote){0};
}
