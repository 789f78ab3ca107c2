// The life of a rank's agent apart from checkpoints: what it reports, how it is stopped, what it
// does without its coordinator, and who can't begin.
#include "control_support.h"

#include "launcher/agent_private.h"

static void progress_and_reports_are_seen(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    Tessera__Control__StepReport r = TESSERA__CONTROL__STEP_REPORT__INIT;
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    ranks[2].progress.step = 7;
    ranks[2].progress.micro_batch = 3;
    ranks[2].progress.phase = TSR_PHASE_BACKWARD;
    r.loss = 2.5;
    for (r.step = 1; r.step <= 7; r.step++)
        tsr_agent_step(ranks[0].agent, &r); // none of them waits for the coordinator
    for (bool seen = false; !seen; nap(0.02)) {
        Tessera__Control__Status *s = coordinator_status(&c);
        assert_int_equal(s->n_ranks, WORLD);
        seen = s->ranks[2]->step == 7 && s->has_last && s->last->step == 7;
        if (seen) {
            assert_int_equal(s->ranks[2]->phase, TSR_PHASE_BACKWARD);
            assert_int_equal(s->ranks[2]->micro_batch, 3);
            assert_true(s->last->loss == 2.5 && s->ranks[1]->alive);
            assert_string_equal(s->ranks[1]->host, "here");
        }
        tessera__control__status__free_unpacked(s, NULL);
    }
    ranks_close(ranks);
    coordinator_stop(&c);
}

static void a_large_shard_map_goes_in_parts(void **state) {
    enum { N = 5000 };
    static Tessera__Checkpoint__TensorShards shards[N], *list[N];
    static char names[N][40];
    Tessera__Checkpoint__ShardMap map = TESSERA__CHECKPOINT__SHARD_MAP__INIT, **parts;
    int n_parts, at = 0;
    (void)state;
    for (int i = 0; i < N; i++) {
        tessera__checkpoint__tensor_shards__init(&shards[i]);
        snprintf(names[i], sizeof names[i], "model.layers.%d.weight", i);
        shards[i].name = names[i];
        list[i] = &shards[i];
    }
    map.n_tensors = N;
    map.tensors = list;
    expect_ok(tsr_map_split(&map, &parts, &n_parts));
    assert_true(n_parts > 1);
    for (int p = 0; p < n_parts; p++) {
        assert_int_equal(parts[p]->part, p);
        assert_int_equal(parts[p]->n_parts, n_parts);
        assert_true(protobuf_c_message_get_packed_size(&parts[p]->base) < 1 << 17);
        for (size_t i = 0; i < parts[p]->n_tensors; i++)
            assert_string_equal(parts[p]->tensors[i]->name, names[at++]);
    }
    assert_int_equal(at, N);
    tsr_map_free(parts, n_parts);
    map.n_tensors = 0; // a rank that owns nothing says so
    expect_ok(tsr_map_split(&map, &parts, &n_parts));
    assert_int_equal(n_parts, 1);
    assert_int_equal(parts[0]->n_tensors, 0);
    tsr_map_free(parts, n_parts);
}

// ---- how it ends

struct stopper {
    struct tsr_link *link;
    Tessera__Control__Stop stop;
    int code;
};

static int stop_welcome(void *arg, const Tessera__Control__Welcome *w) {
    struct stopper *s = arg;
    (void)w;
    tsr_link_send(s->link, TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP, &s->stop.base);
    tsr_link_finish(s->link);
    return 0;
}

static int stop_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    (void)arg;
    (void)type;
    (void)m;
    return 0;
}

static void stop_ended(void *arg, int code) {
    ((struct stopper *)arg)->code = code;
}

static void a_supervisor_says_stop(const struct coordinator *c, bool save, uint32_t exit_code) {
    uv_loop_t loop;
    uint8_t secret[TSR_SECRET];
    struct stopper s = {.stop = TESSERA__CONTROL__STOP__INIT, .code = 1};
    Tessera__Control__Hello hello = TESSERA__CONTROL__HELLO__INIT;
    hello.role = TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR;
    s.stop.save = save;
    s.stop.exit_code = exit_code;
    s.stop.reason = (char *)"the test says so";
    expect_ok(tsr_run_key(run_dir, secret));
    const struct tsr_link_opt opt = {.loop = &loop,
                                     .secret = secret,
                                     .address = &c->address,
                                     .hello = &hello,
                                     .timeout_s = 60,
                                     .welcome = stop_welcome,
                                     .message = stop_message,
                                     .ended = stop_ended,
                                     .arg = &s};
    assert_int_equal(uv_loop_init(&loop), 0);
    expect_ok(tsr_link_open(&s.link, &opt));
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(s.code, 0);
}

static void stop_sets_the_flag_or_ends_the_rank(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    a_supervisor_says_stop(&c, true, 0);
    for (int i = 0; i < WORLD; i++) {
        WAIT_FOR(atomic_load(&ranks[i].progress.stop) == 1);
        assert_int_equal(atomic_load(&ranks[i].exit_code), -1);
    }
    a_supervisor_says_stop(&c, false, 3);
    for (int i = 0; i < WORLD; i++)
        WAIT_FOR(atomic_load(&ranks[i].exit_code) == 3);
    ranks_close(ranks);
    coordinator_stop(&c);
}

static void a_coordinator_that_stays_away_ends_the_rank(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    (void)state;
    limits.lost_s = 1.0;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    atomic_store(&ranks[1].hold[IN_WRITE], 1);
    ranks_save(ranks, 1, 1);
    WAIT_FOR(atomic_load(&ranks[1].in[IN_WRITE]) == 1);
    double begin = tsr_now();
    coordinator_stop(&c);
    for (int i = 0; i < WORLD; i++)
        WAIT_FOR(atomic_load(&ranks[i].exit_code) == 4);
    assert_true(tsr_now() - begin > limits.lost_s + GONE_S); // it was given its time
    assert_true(tsr_agent_save_busy(ranks[1].agent));        // its snapshot is still being read
    atomic_store(&ranks[1].hold[IN_WRITE], 0);
    ranks_expect(ranks, 1, TSR_EPEER);
    const struct tsr_save_ops ops = {.arg = &ranks[0]};
    expect_error(tsr_agent_save(ranks[0].agent, 2, 2, &ops), TSR_EPEER, "no coordinator");
    ranks_close(ranks);
}

static void a_newer_incarnation_ends_the_rank(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    static struct rank old;
    expect_error(rank_open(&old, 0, c.where, run_epoch - 1, 60), TSR_EPEER, "rank 0");
    int port = c.address.port;
    coordinator_stop(&c);
    expect_ok(tsr_epoch_take(run_dir, &run_epoch));
    coordinator_start(&c, port);
    assert_int_equal(c.address.port, port);
    for (int i = 0; i < WORLD; i++)
        WAIT_FOR(atomic_load(&ranks[i].exit_code) == 4);
    ranks_close(ranks);
    coordinator_stop(&c);
}

static int dead_peer(void *arg) {
    atomic_fetch_add((_Atomic int *)arg, 1);
    return tsr_fail(TSR_EPEER, "rank 2 is gone");
}

static void note_reason(void *arg, int exit_code, const char *reason) {
    assert_string_equal(reason, "rank 2 is gone");
    atomic_store((_Atomic int *)arg, exit_code);
}

// The main thread gets its time to say more.
static void a_failed_peer_ends_a_rank_that_goes_on(void **state) {
    static struct coordinator c;
    static struct tsr_progress progress;
    static _Atomic int asked, exit_code;
    struct tsr_agent *agent;
    (void)state;
    coordinator_start(&c, 0);
    const struct tsr_agent_opt opt = {.world = WORLD,
                                      .tp = 1,
                                      .pp = 1,
                                      .dp = WORLD,
                                      .host = "here",
                                      .run_dir = run_dir,
                                      .address = c.where,
                                      .epoch = run_epoch,
                                      .progress = &progress,
                                      .end = note_reason,
                                      .arg = &exit_code,
                                      .poll = dead_peer,
                                      .poll_arg = &asked,
                                      .peer_s = 0.5};
    double begin = tsr_now();
    expect_ok(tsr_agent_open(&agent, &opt));
    WAIT_FOR(atomic_load(&exit_code) == 4);
    assert_true(tsr_now() - begin > 0.5);
    assert_true(atomic_load(&asked) >= 3);
    tsr_agent_close(agent, 4);
    coordinator_stop(&c);
}

// ---- who can't begin

static void no_coordinator_no_rank(void **state) {
    static struct rank r;
    (void)state;
    expect_error(rank_open(&r, 0, "127.0.0.1:1", run_epoch, 0.2), TSR_ETIMEOUT, "127.0.0.1:1");
    expect_error(rank_open(&r, 0, "127.0.0.1", run_epoch, 0.2), TSR_EUSAGE, "host:port");
}

static void another_key_is_refused(void **state) {
    static struct coordinator c;
    static struct rank r;
    char key[TSR_PATH_MAX];
    (void)state;
    coordinator_start(&c, 0);
    expect_ok(tsr_path_join(key, run_dir, "coordinator/key"));
    assert_int_equal(unlink(key), 0);
    expect_error(rank_open(&r, 0, c.where, run_epoch, 60), TSR_EUSAGE, "key");
    expect_ok(tsr_secret_create(key));
    expect_error(rank_open(&r, 0, c.where, run_epoch, 60), TSR_EPEER, "rank 0");
    coordinator_stop(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, control_setup, control_teardown)
        TEST(progress_and_reports_are_seen),
        TEST(a_large_shard_map_goes_in_parts),
        TEST(stop_sets_the_flag_or_ends_the_rank),
        TEST(a_coordinator_that_stays_away_ends_the_rank),
        TEST(a_newer_incarnation_ends_the_rank),
        TEST(a_failed_peer_ends_a_rank_that_goes_on),
        TEST(no_coordinator_no_rank),
        TEST(another_key_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
