// The files of a checkpoint that hold no tensors.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
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
    TSR_TRY(tsr_read_regular_file(path, MAX_GENERATION_CONFIG, TSR_EMODEL, &text, &n));
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

int tsr_ckpt_put_small(const struct tsr_checkpoint *c, const struct tsr_state *state,
                       const char *source_dir, const char *tokenizer_dir) {
    TSR_TRY(put_config(c));
    if (source_dir)
        TSR_TRY(put_generation_config(c, source_dir));
    if (tokenizer_dir)
        TSR_TRY(tsr_tokenizer_copy(tokenizer_dir, c->tmp));
    TSR_TRY(put_index(c));
    return put_state(c, state);
}
