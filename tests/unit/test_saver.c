// The saver between trainer, snapshot and agent. The agent is a stand-in here: one thread that
// drives the operations of a save in their order and plays the coordinator.
#include "tests/unit/checkpoint_support.h"

#include <pthread.h>
#include "core/weights.h"
#include "launcher/saver.h"

struct tsr_agent {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool busy, started, hold; // hold: the save doesn't begin before it is released
    struct tsr_save_ops ops;
    uint32_t attempt;
    struct tsr_save_result result;
    size_t n_map_tensors;
    int fail_code; // instead of publishing
};

static struct fixture x;
static struct tsr_agent agent;
static struct tsr_ctx ctx;
static struct tsr_comm comm;
static struct tsr_progress progress;
static struct tsr_net net;
static struct tsr_saver *saver;

// ---- the stand-in

static void save_as_coordinator(struct tsr_agent *a) {
    struct tsr_save_plan plan;
    struct tsr_save_vote v;
    struct gathered g = {0};
    expect_ok(a->ops.begin(a->ops.arg, &plan));
    g.plan = plan;
    g.publish = (struct tsr_publish){.run_dir = x.dir,
                                     .step = (int64_t)a->result.step,
                                     .temporary = g.plan.temporary,
                                     .range_bytes = plan.range_bytes,
                                     .files = plan.files,
                                     .n_files = plan.n_files};
    expect_ok(tsr_publish_n_ranges(&g.publish, &g.n_ranges));
    g.digests = calloc(g.n_ranges, sizeof *g.digests);
    g.have = calloc(g.n_ranges, sizeof *g.have);
    g.publish.digests = g.digests;
    expect_ok(a->ops.write(a->ops.arg, &v));
    gather(&g, &v);
    assert_true(g.elements == plan.elements);
    for (uint64_t r = 0; r < g.n_ranges; r++) {
        struct tsr_span span = {r, 1};
        if (!g.have[r]) {
            expect_ok(a->ops.digest(a->ops.arg, &span, 1, &v));
            gather(&g, &v);
        }
    }
    a->result.code = a->fail_code;
    if (a->fail_code < 0) {
        snprintf(a->result.error, sizeof a->result.error, "rank 7: the disk is on fire");
        expect_ok(tsr_publish_remove_temporary(x.dir, g.plan.temporary));
    } else {
        expect_ok(publish(&g.publish));
    }
    free_gathered(&g);
}

static void *run_save(void *arg) {
    struct tsr_agent *a = arg;
    pthread_mutex_lock(&a->lock);
    while (a->hold)
        pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
    save_as_coordinator(a);
    a->ops.ended(a->ops.arg, &a->result);
    pthread_mutex_lock(&a->lock);
    a->busy = false;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

static void join(struct tsr_agent *a) {
    if (a->started)
        pthread_join(a->thread, NULL);
    a->started = false;
}

static void set_hold(bool hold) {
    pthread_mutex_lock(&agent.lock);
    agent.hold = hold;
    pthread_cond_broadcast(&agent.changed);
    pthread_mutex_unlock(&agent.lock);
}

int tsr_agent_shard_map(struct tsr_agent *a, const Tessera__Checkpoint__ShardMap *map) {
    a->n_map_tensors = map->n_tensors;
    return 0;
}

int tsr_agent_save(struct tsr_agent *a, int64_t step, uint32_t attempt,
                   const struct tsr_save_ops *ops) {
    assert_false(a->busy);
    join(a);
    a->busy = a->started = true;
    a->ops = *ops;
    a->attempt = attempt;
    a->result = (struct tsr_save_result){.step = (uint64_t)step};
    return pthread_create(&a->thread, NULL, run_save, a) == 0 ? 0 : TSR_ENOMEM;
}

int tsr_agent_save_wait(struct tsr_agent *a, double timeout_s, struct tsr_save_result *out) {
    struct timespec until;
    int rc = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(timeout_s * 1e7); // a hundredth: tests don't wait for seconds
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&a->lock);
    while (a->busy && rc == 0)
        rc = pthread_cond_timedwait(&a->changed, &a->lock, &until);
    bool busy = a->busy;
    *out = a->result;
    pthread_mutex_unlock(&a->lock);
    return busy ? tsr_fail(TSR_ETIMEOUT, "a save is in flight") : 0;
}

// ---- a net of one rank

static int start(void **state) {
    (void)state;
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1, .seed = 1};
    struct tsr_mesh mesh;
    memset(&agent, 0, sizeof agent);
    memset(&progress, 0, sizeof progress);
    pthread_mutex_init(&agent.lock, NULL);
    pthread_cond_init(&agent.changed, NULL);
    open_fixture(&x, gpt2_json);
    expect_ok(tsr_cpu_open(&ctx, NULL, 1));
    expect_ok(tsr_comm_open_single(&comm, &progress));
    tsr_mesh_place(&mesh, 1, 1, 1, 0);
    expect_ok(tsr_net_open(&net, &ctx, &comm, &mesh, &x.model, &opt, 8));
    struct tsr_saver_opt so = {.net = &net, .agent = &agent, .run_dir = x.dir, .epoch = 7};
    expect_ok(tsr_saver_open(&saver, &so));
    assert_int_equal(agent.n_map_tensors, net.tensors.n);
    return 0;
}

static int finish(void **state) {
    (void)state;
    join(&agent);
    tsr_saver_close(saver);
    tsr_net_close(&net);
    tsr_comm_close(&comm);
    ctx.ops->close(&ctx);
    pthread_mutex_destroy(&agent.lock);
    pthread_cond_destroy(&agent.changed);
    close_fixture(&x);
    return 0;
}

static void fill(float value) {
    for (int i = 0; i < net.n_params; i++)
        for (int64_t k = 0; k < net.params[i].rows * net.params[i].cols; k++)
            ((float *)net.params[i].w)[k] = value;
}

static int save(int64_t step, bool wait) {
    x.state.step = step;
    x.state.updates = step;
    return tsr_saver_save(saver, &x.state, wait);
}

// A checkpoint whose weights are all `value`.
static void check_saved(int64_t step, float value) {
    char dir[TSR_PATH_MAX];
    struct tsr_weights *w;
    struct tsr_state s;
    float out[11 * 8];
    const struct tsr_tensor *t = &net.tensors.t[0];
    expect_ok(tsr_checkpoint_path(dir, x.dir, step));
    expect_ok(tsr_checkpoint_verify(dir, 0, 1));
    expect_ok(tsr_weights_open(&w, dir, &x.model, &net.tensors));
    expect_ok(tsr_weights_read(w, t, (struct tsr_region){0, t->rows, 0, t->cols}, out));
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        assert_true(out[i] == value);
    tsr_weights_close(w);
    expect_ok(tsr_state_read(&s, dir));
    assert_int_equal(s.step, step);
    assert_string_equal(s.run_yaml, x.state.run_yaml);
    tsr_state_free(&s);
}

// ---- tests

static void test_training_goes_on(void **state) {
    (void)state;
    assert_int_equal(tsr_saver_committed(saver), -1);
    fill(1.0f);
    set_hold(true);
    expect_ok(save(10, false));
    fill(2.0f); // while step 10 is still to be written
    expect_ok(tsr_saver_poll(saver));
    assert_int_equal(tsr_saver_committed(saver), -1);
    set_hold(false);
    expect_ok(save(20, false)); // waits for 10
    fill(3.0f);
    assert_int_equal(tsr_saver_committed(saver), 10);
    expect_ok(tsr_saver_wait(saver));
    assert_int_equal(tsr_saver_committed(saver), 20);
    assert_int_equal(agent.attempt, 2);
    expect_ok(save(30, true));
    assert_int_equal(tsr_saver_committed(saver), 30);
    check_saved(10, 1.0f);
    check_saved(20, 2.0f);
    check_saved(30, 3.0f);
}

static void test_same_bytes_either_way(void **state) {
    (void)state;
    char dir[TSR_PATH_MAX];
    size_t n[2];
    char *manifests[2];
    fill(1.5f);
    for (int i = 0; i < 2; i++) {
        expect_ok(save(10, i == 1));
        expect_ok(tsr_saver_wait(saver));
        expect_ok(tsr_checkpoint_path(dir, x.dir, 10));
        strcat(dir, "/manifest.json");
        manifests[i] = read_bytes(dir, &n[i]);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(manifests[0], manifests[1], n[0]);
    free(manifests[0]);
    free(manifests[1]);
}

// A failure is told once, to whoever asks first, and the next save is a new attempt.
static void test_failure(void **state) {
    (void)state;
    fill(1.0f);
    expect_ok(save(10, true));
    agent.fail_code = TSR_ENOSPC;
    expect_error(save(20, true), TSR_ENOSPC, "on fire");
    expect_ok(tsr_saver_poll(saver));
    expect_ok(save(20, false));
    while (tsr_agent_save_wait(&agent, 1.0, &(struct tsr_save_result){0}) < 0)
        ;
    expect_error(tsr_saver_poll(saver), TSR_ENOSPC, "on fire");
    expect_ok(tsr_saver_poll(saver));
    expect_ok(save(20, false));
    expect_error(save(30, false), TSR_ENOSPC, "on fire"); // of 20; 30 is not begun
    assert_int_equal(agent.attempt, 4);
    agent.fail_code = 0;
    expect_ok(save(30, true));
    assert_int_equal(agent.attempt, 5);
    assert_int_equal(tsr_saver_committed(saver), 30);
    check_saved(10, 1.0f);
    check_saved(30, 1.0f);
}

static void *wait_for_save(void *arg) {
    return tsr_saver_wait(arg) == 0 ? arg : NULL;
}

// Waiting for a slow disk looks alive to whoever watches the progress.
static void test_waiting_is_seen(void **state) {
    (void)state;
    set_hold(true);
    expect_ok(save(10, false));
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, wait_for_save, saver), 0);
    while (atomic_load(&progress.micro_batch) < 3)
        ;
    set_hold(false);
    void *succeeded;
    assert_int_equal(pthread_join(t, &succeeded), 0);
    assert_non_null(succeeded);
    assert_int_equal(tsr_saver_committed(saver), 10);
}

// Closing lets the save in flight come to its end.
static void test_close_in_flight(void **state) {
    (void)state;
    fill(1.0f);
    set_hold(true);
    expect_ok(save(10, false));
    set_hold(false);
    tsr_saver_close(saver);
    saver = NULL;
    check_saved(10, 1.0f);
}

// A direct saver has nothing but the net, and what it writes is the same.
static void test_direct(void **state) {
    (void)state;
    char dir[TSR_PATH_MAX];
    size_t n[2];
    char *manifests[2];
    for (int direct = 0; direct < 2; direct++) {
        struct tsr_saver_opt so = {
            .net = &net, .agent = &agent, .run_dir = x.dir, .epoch = 7, .direct = direct};
        tsr_saver_close(saver);
        expect_ok(tsr_saver_open(&saver, &so));
        fill(4.0f);
        expect_ok(save(10, true));
        check_saved(10, 4.0f);
        expect_ok(tsr_checkpoint_path(dir, x.dir, 10));
        strcat(dir, "/manifest.json");
        manifests[direct] = read_bytes(dir, &n[direct]);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(manifests[0], manifests[1], n[0]);
    free(manifests[0]);
    free(manifests[1]);
    agent.fail_code = TSR_ENOSPC;
    expect_error(save(20, true), TSR_ENOSPC, "on fire");
    agent.fail_code = 0;
    fill(5.0f);
    expect_ok(save(20, true));
    check_saved(20, 5.0f);
    check_saved(10, 4.0f);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_training_goes_on), WITH(test_same_bytes_either_way), WITH(test_failure),
        WITH(test_waiting_is_seen),  WITH(test_close_in_flight),       WITH(test_direct),
    };
    return cmocka_run_group_tests_name("saver", tests, NULL, NULL);
}
