#include "launcher/coordinator/save.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

struct tsr_save *tsr_save_new(int world, uint64_t epoch, uint64_t step, uint32_t attempt,
                              double now) {
    struct tsr_save *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (struct tsr_save){.refs = 1, .world = world, .progress = now};
    s->out = (struct tsr_coord_save){.step = step, .epoch = epoch, .attempt = attempt};
    tsr_save_temporary(s->out.temporary, step, epoch, attempt);
    snprintf(s->out.directory, sizeof s->out.directory, "step-%08" PRIu64, step);
    s->ranks = calloc((size_t)world, sizeof *s->ranks);
    if (!s->ranks) {
        free(s);
        return NULL;
    }
    return s;
}

static void free_plan(struct tsr_save *s) {
    for (int i = 0; i < s->out.n_files; i++)
        free(s->out.files[i].path);
    free(s->out.files);
    free(s->out.digests);
    free(s->digester);
    free(s->known);
    s->out.files = NULL;
    s->out.n_files = 0;
    s->out.digests = NULL;
    s->digester = NULL;
    s->known = NULL;
}

void tsr_save_unref(struct tsr_save *s) {
    if (!s || --s->refs > 0)
        return;
    free_plan(s);
    free(s->ranks);
    free(s);
}

void tsr_save_temporary(char out[static 128], uint64_t step, uint64_t epoch, uint32_t attempt) {
    snprintf(out, 128, ".tmp-step-%08" PRIu64 "-e%08" PRIu64 "-a%" PRIu32, step, epoch, attempt);
}

// A relative path of plain names: nothing that leaves the directory, no hidden file.
static bool good_path(const char *path) {
    if (strlen(path) > 255 || strcmp(path, "manifest.json") == 0)
        return false;
    for (const char *p = path;;) {
        if (*p == '.' || *p == '/' || *p == '\0')
            return false;
        for (; *p != '/' && *p != '\0'; p++)
            if ((unsigned char)*p < ' ' || *p == '\\')
                return false;
        if (*p == '\0')
            return true;
        p++;
    }
}

static int count_ranges(const Tessera__Checkpoint__SavePlan *p, uint64_t *n_ranges) {
    if (p->range_bytes < 64 || p->range_bytes > UINT64_C(1) << 40 ||
        (p->range_bytes & (p->range_bytes - 1)) != 0)
        return tsr_fail(TSR_EREQUEST, "plan of a save: ranges of %" PRIu64 " bytes",
                        p->range_bytes);
    if (p->n_files == 0 || p->n_files > TSR_COORD_MAX_FILES)
        return tsr_fail(TSR_EREQUEST, "plan of a save: %zu files", p->n_files);
    *n_ranges = 0;
    for (size_t i = 0; i < p->n_files; i++) {
        const Tessera__Checkpoint__PlannedFile *f = p->files[i];
        if (!good_path(f->path))
            return tsr_fail(TSR_EREQUEST, "plan of a save: a file \"%.100s\"", f->path);
        if (i > 0 && strcmp(p->files[i - 1]->path, f->path) >= 0)
            return tsr_fail(TSR_EREQUEST, "plan of a save: \"%.100s\" comes after \"%.100s\"",
                            f->path, p->files[i - 1]->path);
        uint64_t n = f->size / p->range_bytes + (f->size % p->range_bytes != 0);
        if (n > TSR_COORD_MAX_RANGES - *n_ranges)
            return tsr_fail(TSR_EREQUEST, "plan of a save: more than %d ranges",
                            TSR_COORD_MAX_RANGES);
        *n_ranges += n;
    }
    return 0;
}

static int copy_files(struct tsr_save *s, const Tessera__Checkpoint__SavePlan *p) {
    s->out.files = calloc(p->n_files, sizeof *s->out.files);
    for (size_t i = 0; s->out.files && i < p->n_files; i++) {
        s->out.files[i].path = strdup(p->files[i]->path);
        s->out.files[i].size = p->files[i]->size;
        s->out.n_files++;
        if (!s->out.files[i].path)
            return TSR_ENOMEM;
    }
    return s->out.files ? 0 : TSR_ENOMEM;
}

int tsr_save_plan(struct tsr_save *s, const Tessera__Checkpoint__SavePlan *p) {
    uint64_t n = 0;
    if (strcmp(p->temporary, s->out.temporary) != 0)
        return tsr_fail(TSR_EREQUEST, "plan of a save: expected the directory %s, found \"%.100s\"",
                        s->out.temporary, p->temporary);
    TSR_TRY(count_ranges(p, &n));
    s->out.n_ranges = n;
    s->out.range_bytes = p->range_bytes;
    s->elements = p->elements;
    s->out.digests = calloc(n + 1, sizeof *s->out.digests);
    s->digester = calloc(n + 1, sizeof *s->digester);
    s->known = calloc(n + 1, sizeof *s->known);
    if (!s->out.digests || !s->digester || !s->known || copy_files(s, p) < 0) {
        free_plan(s);
        return tsr_fail(TSR_ENOMEM, "no memory for the plan of a save");
    }
    s->planned = true;
    return 0;
}

static int take_one(struct tsr_save *s, int rank, uint64_t range, const uint8_t *digest,
                    bool owed) {
    uint32_t me = (uint32_t)rank + 1;
    if (s->known[range] && s->digester[range] == me) // said again
        return 0;
    if (owed ? s->digester[range] != me : s->digester[range] != 0)
        return tsr_fail(TSR_EDATA, "a digest of range %" PRIu64 " that another rank is to give",
                        range);
    s->digester[range] = me;
    s->known[range] = 1;
    s->n_known++;
    if (owed && --s->ranks[rank].owes == 0)
        s->n_owing--;
    memcpy(s->out.digests[range].b, digest, sizeof s->out.digests[range].b);
    return 0;
}

int tsr_save_take_digests(struct tsr_save *s, int rank, size_t n,
                          Tessera__Checkpoint__RangeDigests *const *ranges, bool owed) {
    for (size_t i = 0; i < n; i++) {
        const Tessera__Checkpoint__RangeDigests *r = ranges[i];
        uint64_t count = r->digests.len / sizeof(struct tsr_digest);
        if (r->digests.len % sizeof(struct tsr_digest) != 0 || r->first > s->out.n_ranges ||
            count > s->out.n_ranges - r->first)
            return tsr_fail(TSR_EDATA,
                            "%zu bytes of digests of ranges from %" PRIu64 ", of %" PRIu64
                            " ranges in all",
                            r->digests.len, r->first, s->out.n_ranges);
        for (uint64_t k = 0; k < count; k++)
            TSR_TRY(take_one(s, rank, r->first + k, r->digests.data + k * sizeof(struct tsr_digest),
                             owed));
    }
    return 0;
}
