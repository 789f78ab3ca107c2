// The last step: small files, manifest, durability, rename.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"
#include "core/tokenizer.h"

enum { MAX_GENERATION_CONFIG = 1 << 20 }; // bytes

static int put_file(const struct tsr_checkpoint *c, const char *name, const char *text, size_t n) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, c->tmp, name));
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot create", path);
    int rc = tsr_write_all(fd, text, n, path);
    if (close(fd) < 0 && rc == 0)
        rc = tsr_fail_errno(errno, "cannot write", path);
    return rc;
}

// The model says float32; when its files hold something else, so must the config, or transformers
// would load them as float32.
static int put_config(const struct tsr_checkpoint *c) {
    static const char float32[] = "\"torch_dtype\": \"float32\"";
    char *text = tsr_model_to_json(c->opt.model);
    if (!text)
        return tsr_fail(TSR_ENOMEM, "no memory for config.json");
    const char *at = c->opt.dtype == TSR_DT_F32 ? NULL : strstr(text, float32);
    struct tsr_buf b = {0};
    int rc = tsr_buf_append(&b, text, at ? (size_t)(at - text) : strlen(text));
    if (rc == 0 && at)
        rc = tsr_buf_printf(&b, "\"torch_dtype\": \"%s\"%s",
                            c->opt.dtype == TSR_DT_BF16 ? "bfloat16" : "float16",
                            at + strlen(float32));
    if (rc == 0)
        rc = put_file(c, "config.json", b.data, b.len);
    tsr_buf_free(&b);
    free(text);
    return rc;
}

static int put_generation_config(const struct tsr_checkpoint *c, const char *source_dir) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    TSR_TRY(tsr_path_join(path, source_dir, "generation_config.json"));
    if (!tsr_path_exists(path))
        return 0;
    TSR_TRY(tsr_read_file(path, MAX_GENERATION_CONFIG, TSR_EMODEL, &text, &n));
    int rc = put_file(c, "generation_config.json", text, n);
    free(text);
    return rc;
}

struct placed {
    const char *name, *file;
};

static int order_of_placed(const void *a, const void *b) {
    return strcmp(((const struct placed *)a)->name, ((const struct placed *)b)->name);
}

// Names of the tensor table need no escapes.
static int index_text(const struct tsr_checkpoint *c, struct placed *placed, struct tsr_buf *b) {
    const struct tsr_ckpt_set *s = &c->sets[0];
    uint64_t total = 0;
    int n = 0;
    for (int k = s->first_file; k < s->first_file + s->n_files; k++)
        for (int i = 0; i < c->files[k].n_entries; i++) {
            const struct tsr_st_entry *e = &c->files[k].entries[i];
            placed[n++] = (struct placed){e->name, c->files[k].path};
            total += e->end - e->begin;
        }
    qsort(placed, (size_t)n, sizeof *placed, order_of_placed);
    TSR_TRY(tsr_buf_printf(
        b, "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {\n",
        total));
    for (int i = 0; i < n; i++)
        TSR_TRY(tsr_buf_printf(b, "    \"%s\": \"%s\"%s\n", placed[i].name, placed[i].file,
                               i < n - 1 ? "," : ""));
    return tsr_buf_printf(b, "  }\n}\n");
}

static int put_index(const struct tsr_checkpoint *c) {
    struct tsr_buf b = {0};
    struct placed *placed = malloc((size_t)c->sets[0].n_entries * sizeof *placed);
    if (!placed)
        return tsr_fail(TSR_ENOMEM, "no memory for the index of a checkpoint");
    int rc = index_text(c, placed, &b);
    if (rc == 0)
        rc = put_file(c, "model.safetensors.index.json", b.data, b.len);
    tsr_buf_free(&b);
    free(placed);
    return rc;
}

static int put_state(const struct tsr_checkpoint *c, const struct tsr_state *state) {
    struct tsr_buf b = {0};
    struct tsr_state s = *state;
    TSR_ASSERT(s.step == c->opt.step);
    s.n_params = 0;
    for (int i = 0; i < c->opt.table->n; i++)
        s.n_params += c->opt.table->t[i].rows * c->opt.table->t[i].cols;
    int rc = tsr_state_to_json(&s, &b);
    if (rc == 0)
        rc = put_file(c, "state.json", b.data, b.len);
    tsr_buf_free(&b);
    return rc;
}

// Digests of a file: a tensor file's were made by all ranks, a small one's are made here.
static int take_digests(const struct tsr_checkpoint *c, const struct tsr_digest *digests,
                        int n_ranks, struct tsr_ckpt_listed *f, int fd, const char *path) {
    const uint64_t range = c->opt.range_bytes;
    for (int k = 0; k < c->n_files; k++) {
        if (strcmp(c->files[k].path, f->path) != 0)
            continue;
        if (c->files[k].size != f->size)
            return tsr_fail(TSR_EIO, "%s: expected %" PRIu64 " bytes, found %" PRIu64, path,
                            c->files[k].size, f->size);
        for (int64_t i = 0; i < f->n_ranges; i++)
            f->digests[i] =
                digests[tsr_ckpt_slot_of_range(c->files[k].first_range + i, c->n_ranges, n_ranks)];
        return 0;
    }
    for (int64_t i = 0; i < f->n_ranges; i++) {
        uint64_t at = (uint64_t)i * range, left = f->size - at;
        TSR_TRY(tsr_ckpt_digest_range(fd, path, at, left < range ? left : range, &f->digests[i]));
    }
    return 0;
}

static int list_one(const struct tsr_checkpoint *c, const struct tsr_digest *digests, int n_ranks,
                    const char *name, struct tsr_ckpt_listed *f) {
    char path[TSR_PATH_MAX];
    struct stat st;
    TSR_TRY(tsr_path_join(path, c->tmp, name));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc = fstat(fd, &st) < 0 ? tsr_fail_errno(errno, "cannot read", path) : 0;
    if (rc == 0) {
        f->size = (uint64_t)st.st_size;
        f->n_ranges = tsr_ckpt_n_ranges(f->size, c->opt.range_bytes);
        f->path = strdup(name);
        f->digests = calloc((size_t)f->n_ranges + 1, sizeof *f->digests);
        rc = f->path && f->digests ? take_digests(c, digests, n_ranks, f, fd, path)
                                   : tsr_fail(TSR_ENOMEM, "%s: no memory for its digests", path);
    }
    if (rc == 0 && fsync(fd) < 0)
        rc = tsr_fail_errno(errno, "cannot sync", path);
    close(fd);
    return rc;
}

static int fill_manifest(const struct tsr_checkpoint *c, const struct tsr_digest *digests,
                         int n_ranks, struct tsr_ckpt_manifest *m) {
    struct tsr_ckpt_names names;
    TSR_TRY(tsr_ckpt_list(&names, c->tmp));
    int rc = 0;
    m->files = calloc((size_t)names.n + 1, sizeof *m->files);
    if (!m->files)
        rc = tsr_fail(TSR_ENOMEM, "no memory for the manifest of a checkpoint");
    for (int i = 0; rc == 0 && i < names.n; i++) {
        m->n++;
        rc = list_one(c, digests, n_ranks, names.v[i], &m->files[i]);
    }
    tsr_ckpt_names_free(&names);
    return rc;
}

// Every file is durable before the manifest that vouches for it is written.
static int put_manifest(const struct tsr_checkpoint *c, const struct tsr_digest *digests,
                        int n_ranks) {
    char path[TSR_PATH_MAX];
    struct tsr_buf b = {0};
    struct tsr_ckpt_manifest m = {.step = c->opt.step, .range_bytes = c->opt.range_bytes};
    int rc = fill_manifest(c, digests, n_ranks, &m);
    if (rc == 0)
        rc = tsr_path_join(path, c->tmp, "optimizer");
    if (rc == 0)
        rc = tsr_fsync_path(path);
    if (rc == 0)
        rc = tsr_fsync_path(c->tmp);
    if (rc == 0)
        rc = tsr_ckpt_manifest_text(&m, &b);
    if (rc == 0)
        rc = tsr_path_join(path, c->tmp, TSR_CKPT_MANIFEST);
    if (rc == 0)
        rc = tsr_write_file_durable(path, b.data, b.len);
    tsr_buf_free(&b);
    tsr_ckpt_manifest_free(&m);
    return rc;
}

// Without RENAME_EXCHANGE (some network file systems) there is a moment without either; should we
// die in it, tsr_checkpoint_clean_temps puts the old one back.
static int replace_in_two(const struct tsr_checkpoint *c) {
    char old[TSR_PATH_MAX], name[64];
    snprintf(name, sizeof name, ".old-step-%08" PRId64 "-%016" PRIx64, c->opt.step, c->opt.nonce);
    TSR_TRY(tsr_path_join(old, c->parent, name));
    if (rename(c->dir, old) < 0)
        return tsr_fail_errno(errno, "cannot rename", c->dir);
    if (rename(c->tmp, c->dir) < 0) {
        int err = errno;
        rename(old, c->dir);
        return tsr_fail_errno(err, "cannot rename to", c->dir);
    }
    TSR_TRY(tsr_fsync_path(c->parent));
    return tsr_remove_tree(old);
}

static int replace(const struct tsr_checkpoint *c) {
    if (renameat2(AT_FDCWD, c->tmp, AT_FDCWD, c->dir, RENAME_EXCHANGE) < 0) {
        if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
            return replace_in_two(c);
        return tsr_fail_errno(errno, "cannot rename to", c->dir);
    }
    TSR_TRY(tsr_fsync_path(c->parent));
    return tsr_remove_tree(c->tmp); // now the old one
}

static int publish(const struct tsr_checkpoint *c) {
    char run_dir[TSR_PATH_MAX];
    if (rename(c->tmp, c->dir) < 0) {
        if (errno != EEXIST && errno != ENOTEMPTY)
            return tsr_fail_errno(errno, "cannot rename to", c->dir);
        TSR_TRY(replace(c));
    }
    TSR_TRY(tsr_fsync_path(c->parent));
    TSR_TRY(tsr_path_dir(run_dir, c->parent)); // `checkpoints` itself may be new
    return tsr_fsync_path(run_dir);
}

int tsr_checkpoint_commit(struct tsr_checkpoint *c, const struct tsr_digest *digests, int n_ranks,
                          const struct tsr_state *state, const char *source_dir,
                          const char *tokenizer_dir) {
    TSR_TRY(put_config(c));
    if (source_dir)
        TSR_TRY(put_generation_config(c, source_dir));
    if (tokenizer_dir)
        TSR_TRY(tsr_tokenizer_copy(tokenizer_dir, c->tmp));
    TSR_TRY(put_index(c));
    TSR_TRY(put_state(c, state));
    TSR_TRY(put_manifest(c, digests, n_ranks));
    return publish(c);
}
