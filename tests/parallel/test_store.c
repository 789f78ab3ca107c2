// A checkpoint that is large enough to be read ahead, into every layout of the ranks that there
// are: what is loaded is what was saved, damage is found by whoever meets it, and the checkpoint
// before takes its place.
#include "tests/unit/checkpoint_support.h"

#include <fcntl.h>
#include <unistd.h>
#include "core/log.h"
#include "dist/comm_mpi.h"
#include "dist/leaves.h"
#include "dist/snapshot.h"
#include "dist/store.h"
#include "tests/unit/state_support.h"

static const char llama[] = // 80 MB of state; 5 heads: copies of KV heads on several ranks
    "{\"model_type\":\"llama\",\"num_hidden_layers\":4,\"hidden_size\":160,"
    "\"intermediate_size\":301,\"num_attention_heads\":5,\"num_key_value_heads\":1,"
    "\"vocab_size\":34567,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,"
    "\"tie_word_embeddings\":true}";
static const char gpt2[] = // transposed and fused in the files
    "{\"model_type\":\"gpt2\",\"n_layer\":4,\"n_embd\":384,\"n_head\":6,\"n_positions\":16,"
    "\"vocab_size\":107,\"activation_function\":\"gelu_new\"}";

static struct tsr_comm comm;
static struct tsr_progress progress;
static struct tsr_ctx ctx;
static struct fixture x;
static char dirs[3][TSR_PATH_MAX]; // of steps 0 (none), 1 and 2

static void must(int rc) {
    if (rc < 0)
        tsr_comm_abort(&comm, 1); // a rank alone must not fail: the others would wait
}

static void check(bool ok, const char *what) {
    if (!ok)
        must(tsr_fail(TSR_EDATA, "%s", what));
}

static void barrier(void) {
    must(comm.ops->barrier(&ctx, &comm, &comm.world_group, "test", 60));
}

static void open_net(struct tsr_net *net, struct tsr_comm *c, int tp, int pp, int dp, int rank) {
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1, .seed = 1};
    struct tsr_mesh mesh;
    tsr_mesh_place(&mesh, tp, pp, dp, rank);
    mesh.V = mesh.W = 8;
    must(tsr_net_open(net, &ctx, c, &mesh, &x.model, &opt, 16));
    state_fill(net);
}

// ---- what one rank writes

static void write_step(int64_t step) {
    struct tsr_comm alone;
    struct tsr_net net;
    struct tsr_snapshot *s;
    struct tsr_checkpoint *c;
    struct gathered g;
    struct tsr_save_vote v;
    must(tsr_comm_open_single(&alone, &progress));
    open_net(&net, &alone, 1, 1, 1, 0);
    x.opt.step = x.state.step = x.state.updates = step;
    x.opt.attempt++;
    x.opt.table = &net.tensors;
    must(tsr_snapshot_open(&s, &net));
    must(tsr_snapshot_take(s));
    must(tsr_checkpoint_open(&c, &x.opt));
    must(tsr_checkpoint_begin(c, &x.state, NULL, NULL));
    open_gathered(&g, &x, c);
    must(tsr_snapshot_write(s, c));
    must(tsr_checkpoint_flush(c, &v));
    gather(&g, &v);
    read_back(&g, &c, 1);
    must(publish(&g.publish));
    free_gathered(&g);
    tsr_checkpoint_close(c);
    tsr_snapshot_close(s);
    tsr_net_close(&net);
    tsr_comm_close(&alone);
}

// Rank 0 writes steps 1 and 2 into a folder whose name all learn.
static void start(const char *json, enum tsr_dtype dtype, uint64_t range_bytes) {
    open_fixture(&x, json);
    x.opt.max_file_bytes = 0;
    x.opt.range_bytes = range_bytes;
    x.opt.dtype = dtype;
    char own[TSR_PATH_MAX];
    snprintf(own, sizeof own, "%s", x.dir);
    must(comm.ops->broadcast(&ctx, &comm, &comm.world_group, x.dir, sizeof x.dir, 0));
    if (comm.rank != 0)
        must(tsr_remove_tree(own));
    for (int step = 1; step <= 2; step++) {
        if (comm.rank == 0)
            write_step(step);
        must(tsr_checkpoint_path(dirs[step], x.dir, step));
    }
    barrier();
}

static void finish(void) {
    barrier();
    tsr_tensor_table_free(&x.table);
    tsr_model_free(&x.model);
    if (comm.rank == 0)
        must(tsr_remove_tree(x.dir));
}

// ---- every layout of the world

typedef void (*net_fn)(struct tsr_net *net);

static void each_layout(net_fn fn) {
    for (int tp = 1; tp <= comm.world && tp <= 4; tp++)
        for (int pp = 1; tp * pp <= comm.world && pp <= 4; pp++) {
            int dp = comm.world / (tp * pp);
            if (tp * pp * dp != comm.world || 8 % tp != 0 || 8 % dp != 0)
                continue;
            struct tsr_net net;
            open_net(&net, &comm, tp, pp, dp, comm.rank);
            fn(&net);
            tsr_net_close(&net);
        }
}

static void load_whole(struct tsr_net *net) {
    const uint64_t want = state_hash(net);
    for (int verify = 0; verify < 2; verify++) {
        state_spoil(net);
        must(tsr_store_load_checkpoint(net, dirs[1], verify));
        check(state_hash(net) == want, "what was loaded isn't what was saved");
    }
}

// As in a directory that has no manifest: weights alone.
static void load_weights(struct tsr_net *net) {
    const uint64_t want = state_hash(net);
    for (int i = 0; i < net->n_params; i++)
        if (!net->params[i].alias)
            memset(net->params[i].w, 0x55,
                   (size_t)(net->params[i].rows * net->params[i].cols) * sizeof(float));
    must(tsr_store_load_weights(net, dirs[2]));
    check(state_hash(net) == want, "weights that were loaded aren't those that were saved");
}

static void test_llama(void **state) {
    (void)state;
    start(llama, TSR_DT_F32, 0);
    each_layout(load_whole);
    each_layout(load_weights);
    finish();
}

static void test_gpt2(void **state) {
    (void)state;
    start(gpt2, TSR_DT_F32, 1 << 20);
    each_layout(load_whole);
    each_layout(load_weights);
    finish();
}

// The master is read, not the model's files; ranges are smaller than pieces, and larger.
static void test_master(void **state) {
    (void)state;
    start(gpt2, TSR_DT_BF16, 64 << 20);
    each_layout(load_whole);
    finish();
}

// ---- damage

static void flip(const char *file, int64_t at) {
    char path[TSR_PATH_MAX];
    unsigned char byte;
    must(tsr_path_join(path, dirs[2], file));
    if (comm.rank == 0) {
        int fd = open(path, O_RDWR);
        check(fd >= 0, "cannot open a file of the checkpoint");
        off_t offset = at >= 0 ? (off_t)at : lseek(fd, 0, SEEK_END) + (off_t)at;
        check(pread(fd, &byte, 1, offset) == 1, "cannot read it");
        byte ^= 4;
        check(pwrite(fd, &byte, 1, offset) == 1, "cannot damage it");
        close(fd);
    }
    barrier();
}

static int refuse(void *arg, const char *dir) {
    (void)arg;
    return tsr_fail(TSR_ECONFIG, "%s isn't wanted", dir);
}

static void fall_back(struct tsr_net *net) {
    const uint64_t want = state_hash(net);
    char found[TSR_PATH_MAX];
    state_spoil(net);
    int rc = tsr_store_resume(net, x.dir, INT64_MAX, NULL, NULL, found);
    check(rc == 1 && strcmp(found, dirs[1]) == 0, "expected to fall back to step 1");
    check(state_hash(net) == want, "what was loaded isn't what was saved");
    rc = tsr_agree(&ctx, &comm, tsr_store_load_checkpoint(net, dirs[2], true));
    check(rc == TSR_EMODEL, "expected the damage to be found");
    rc = tsr_store_resume(net, x.dir, 1, NULL, NULL, found);
    check(rc == 0, "expected no checkpoint before step 1");
    rc = tsr_store_resume(net, x.dir, INT64_MAX, refuse, NULL, found);
    check(rc == TSR_ECONFIG, "expected a refusal to be the end");
}

static void is_zero(void *arg, const struct tsr_param *p, int part, int64_t row, float *at,
                    int64_t n_rows) {
    (void)arg;
    (void)row;
    for (int64_t i = 0; part > 0 && i < n_rows * p->cols; i++)
        check(at[i] == 0.0f, "moments of a damaged checkpoint are left");
}

static void find_none(struct tsr_net *net) {
    char found[TSR_PATH_MAX];
    int rc = tsr_store_resume(net, x.dir, INT64_MAX, NULL, NULL, found);
    check(rc == 0, "expected no good checkpoint");
    state_each(net, is_zero, NULL);
}

// Model files, moments; headers, middles, ends; and what no layout reads for itself: the model's
// files beside a master.
static void test_damage(void **state) {
    (void)state;
    static const char model[] = "model-00001-of-00001.safetensors";
    static const struct {
        const char *file;
        int64_t at;
    } places[] = {{model, 9},
                  {model, 12345678},
                  {"optimizer/m-00001-of-00001.safetensors", -1},
                  {"optimizer/v-00001-of-00001.safetensors", 17 << 20}};
    start(llama, TSR_DT_F32, 0);
    tsr_log_level(TSR_LOG_ERROR); // each fall-back is a warning
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        flip(places[i].file, places[i].at);
        each_layout(fall_back);
        if (i == 0) // the other one, too
            for (int twice = 0; twice < 2; twice++) {
                char kept[TSR_PATH_MAX];
                memcpy(kept, dirs[2], sizeof kept);
                memcpy(dirs[2], dirs[1], sizeof kept);
                flip("optimizer/v-00001-of-00001.safetensors", 17 << 20);
                memcpy(dirs[2], kept, sizeof kept);
                if (!twice)
                    each_layout(find_none);
            }
        flip(places[i].file, places[i].at);
    }
    each_layout(load_whole);
    finish();
}

static void test_unread_files(void **state) {
    (void)state;
    start(gpt2, TSR_DT_BF16, 0);
    tsr_log_level(TSR_LOG_ERROR);
    flip("model-00001-of-00001.safetensors", -1000);
    each_layout(fall_back);
    finish();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_master),       cmocka_unit_test(test_damage),
        cmocka_unit_test(test_unread_files),
    };
    if (tsr_comm_open_mpi(&comm, &argc, &argv, &progress) < 0)
        return 1;
    must(tsr_cpu_open(&ctx, NULL, 1));
    int failed = cmocka_run_group_tests_name("store", tests, NULL, NULL);
    ctx.ops->close(&ctx);
    tsr_comm_close(&comm);
    return failed;
}
