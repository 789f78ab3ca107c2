// The plan of reading a checkpoint into another layout says what that layout's ranks really read:
// each rank's loading is done, on a device without memory, and its reads are counted at the kernel.
#include "tests/unit/checkpoint_support.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
#include "dist/reshard.h"
#include "dist/store.h"

static const char llama_json[] =
    "{\"model_type\":\"llama\",\"hidden_size\":48,\"intermediate_size\":72,"
    "\"num_hidden_layers\":4,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"vocab_size\":101,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,"
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false}";
static const char tied_json[] =
    "{\"model_type\":\"llama\",\"hidden_size\":40,\"intermediate_size\":30,"
    "\"num_hidden_layers\":4,\"num_attention_heads\":5,\"num_key_value_heads\":1,\"head_dim\":8,"
    "\"vocab_size\":33,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,"
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":true}";
static const char wide_gpt2_json[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":4,\"n_embd\":32,\"n_head\":4,\"n_positions\":6,"
    "\"vocab_size\":51,\"n_inner\":52,\"activation_function\":\"gelu_new\"}";

// ---- what the kernel sees

enum { MAX_FILES = 64 };

static struct {
    bool on;
    struct {
        char path[TSR_PATH_MAX];
        uint64_t data; // where the tensors begin
        uint64_t read;
    } files[MAX_FILES];
    int n;
} seen;

static uint64_t header_end(int fd) {
    unsigned char b[8];
    uint64_t n = 0;
    bool on = seen.on;
    seen.on = false;
    assert_int_equal(pread(fd, b, sizeof b, 0), sizeof b);
    seen.on = on;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | b[i];
    return n + 8;
}

static void count(int fd, uint64_t offset, uint64_t n_bytes) {
    char link[64], path[TSR_PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    assert_true(n > 0);
    path[n] = 0;
    int i = 0;
    while (i < seen.n && strcmp(seen.files[i].path, path) != 0)
        i++;
    if (i == seen.n) {
        assert_true(seen.n < MAX_FILES);
        snprintf(seen.files[i].path, sizeof seen.files[i].path, "%s", path);
        seen.files[i].data = header_end(fd);
        seen.files[i].read = 0;
        seen.n++;
    }
    if (offset >= seen.files[i].data)
        seen.files[i].read += n_bytes;
}

ssize_t pread(int fd, void *buf, size_t size, off_t at) {
    ssize_t (*real)(int, void *, size_t, off_t) =
        (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    ssize_t n = real(fd, buf, size, at);
    if (seen.on && n > 0)
        count(fd, (uint64_t)at, (uint64_t)n);
    return n;
}

// ---- one rank

static void load(const struct fixture *x, const struct tsr_mesh *mesh, const char *dir) {
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1};
    struct tsr_ctx ctx;
    struct tsr_comm comm;
    struct tsr_net net;
    expect_ok(tsr_cpu_open_dry(&ctx, NULL, 1));
    expect_ok(tsr_comm_open_pretend(&comm, mesh->world, mesh->rank, mesh->world, false));
    expect_ok(tsr_net_open(&net, &ctx, &comm, mesh, &x->model, &opt, 1));
    seen.n = 0;
    seen.on = true;
    expect_ok(tsr_store_load_checkpoint(&net, dir, false));
    seen.on = false;
    tsr_net_close(&net);
    tsr_comm_close(&comm);
    ctx.ops->close(&ctx);
}

static void check_rank(const struct tsr_reshard_rank *plan, const char *dir) {
    uint64_t total = 0;
    for (int i = 0; i < seen.n; i++) {
        const char *name = seen.files[i].path + strlen(dir) + 1;
        uint64_t planned = 0;
        for (int k = 0; k < plan->n_files; k++)
            if (strcmp(plan->files[k].path, name) == 0)
                planned = plan->files[k].read;
        if (planned != seen.files[i].read)
            fail_msg("%s: planned %llu bytes, read %llu", name, (unsigned long long)planned,
                     (unsigned long long)seen.files[i].read);
        total += seen.files[i].read;
    }
    assert_true(total == plan->read && plan->needed > 0 && plan->needed <= plan->read);
}

// Returns the bytes of moments that all ranks need together.
static uint64_t check_layout(const struct fixture *x, const char *dir, int tp, int pp, int dp) {
    uint64_t moments = 0, verified = 0;
    for (int r = 0; r < tp * pp * dp; r++) {
        struct tsr_mesh mesh;
        struct tsr_reshard_rank plan;
        tsr_mesh_place(&mesh, tp, pp, dp, r);
        mesh.V = 8;
        mesh.W = 4;
        expect_ok(tsr_reshard_plan(&plan, dir, &x->model, &mesh));
        load(x, &mesh, dir);
        check_rank(&plan, dir);
        for (int i = 0; i < plan.n_files; i++)
            if (strncmp(plan.files[i].path, "optimizer/m-", 12) == 0)
                moments += plan.files[i].needed;
        verified += plan.verified;
        tsr_reshard_free(&plan);
    }
    struct tsr_checkpoint_digests *d;
    expect_ok(tsr_checkpoint_digests_open(&d, dir));
    assert_true(verified == tsr_checkpoint_digests_share(d, 0, 1)); // each range once
    tsr_checkpoint_digests_close(d);
    return moments;
}

static void check_model(const char *json, enum tsr_dtype dtype, bool untied) {
    static const int layouts[][3] = {{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {1, 1, 2}, {2, 2, 1},
                                     {2, 1, 2}, {2, 2, 2}, {4, 1, 1}, {1, 4, 1}, {1, 1, 4}};
    struct fixture x;
    char dir[TSR_PATH_MAX];
    uint64_t all = 0;
    open_fixture(&x, json);
    x.opt.dtype = dtype;
    x.opt.max_file_bytes = 30000;
    x.opt.range_bytes = 4096;
    write_checkpoint(&x, (struct layout){.n_ranks = 2, .V = 8}, NULL, NULL);
    expect_ok(tsr_checkpoint_path(dir, x.dir, x.opt.step));
    for (int i = 0; i < x.table.n; i++)
        all += (uint64_t)(x.table.t[i].rows * x.table.t[i].cols) * sizeof(float);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        uint64_t moments = check_layout(&x, dir, layouts[i][0], layouts[i][1], layouts[i][2]);
        if (untied && layouts[i][0] == 1) // norms stand on each rank of a tensor-parallel group
            assert_true(moments == all);
        else
            assert_true(moments >= all);
    }
    close_fixture(&x);
}

static void test_llama(void **state) {
    (void)state;
    check_model(llama_json, TSR_DT_F32, true);
}

// The fp32 master stands beside the model's files.
static void test_llama_with_master(void **state) {
    (void)state;
    check_model(llama_json, TSR_DT_BF16, true);
}

// A KV head that several ranks need, an embedding that two stages hold.
static void test_shared_tensors(void **state) {
    (void)state;
    check_model(tied_json, TSR_DT_F32, false);
}

// Transposed and fused in the file.
static void test_gpt2(void **state) {
    (void)state;
    check_model(wide_gpt2_json, TSR_DT_F32, false);
}

// Sizes that tests don't reach in files: gaps that are skipped, blocks that are cut.
static void test_costs(void **state) {
    (void)state;
    struct tsr_st_entry e = {.dtype = TSR_DT_F32, .ndim = 2, .shape = {1000, 20000}};
    assert_int_equal(tsr_st_region_bytes(&e, 0, 1000, 0, 20000), 80000000);
    assert_int_equal(tsr_st_region_bytes(&e, 0, 1000, 0, 10000),
                     40000000); // gaps of 40 kB: skipped
    // gaps of 8 kB: 13 rows of 80 kB at a time, each time without the last gap
    assert_int_equal(tsr_st_region_bytes(&e, 0, 1000, 2000, 20000), 80000000 - 77 * 8000);
    assert_int_equal(tsr_st_region_bytes(&e, 7, 7, 0, 20000), 0);
    assert_int_equal(tsr_st_region_bytes(&e, 7, 8, 5, 6), 4);
    e = (struct tsr_st_entry){.dtype = TSR_DT_BF16, .ndim = 1, .shape = {77}};
    assert_int_equal(tsr_st_region_bytes(&e, 10, 20, 0, 1), 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),          cmocka_unit_test(test_llama_with_master),
        cmocka_unit_test(test_shared_tensors), cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_costs),
    };
    return cmocka_run_group_tests_name("reshard", tests, NULL, NULL);
}
