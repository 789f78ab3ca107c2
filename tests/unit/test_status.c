// What is shown of a run: Prometheus metrics over HTTP, the table and the JSON of `tessera status`.
#include "control_support.h"

#include <jansson.h>
#include <math.h>
#include "launcher/coordinator/metrics_http.h"

static struct coordinator c;
static struct rank ranks[WORLD];

// ---- metrics

// The whole answer to a request, NUL-terminated; the caller frees it.
static char *request(int port, const char *text) {
    struct tsr_buf b = {0};
    char bytes[4096];
    ssize_t n;
    int fd = connect_to(port);
    assert_int_equal(send(fd, text, strlen(text), 0), strlen(text));
    while ((n = recv(fd, bytes, sizeof bytes, 0)) > 0)
        expect_ok(tsr_buf_append(&b, bytes, (size_t)n));
    close(fd);
    assert_non_null(b.data);
    return b.data;
}

#define END " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

static void expect_answer(const char *text, const char *status_line, const char *word) {
    char *a = request(c.address.metrics_port, text);
    if (strncmp(a, status_line, strlen(status_line)) != 0 || !strstr(a, word))
        fail_msg("expected \"%s\" and \"%s\", found: %s", status_line, word, a);
    free(a);
}

// Exposition format: each sample follows its HELP and TYPE, names are legal, values are numbers.
static void check_page(const char *page) {
    char name[128] = "", type[32], line[8192];
    int n_samples = 0;
    for (const char *at = page, *end; (end = strchr(at, '\n')); at = end + 1) {
        snprintf(line, sizeof line, "%.*s", (int)(end - at), at);
        if (strncmp(line, "# HELP ", 7) == 0) {
            assert_int_equal(sscanf(line, "# HELP %127s", name), 1);
            assert_true(strlen(line) > 8 + strlen(name));
        } else if (strncmp(line, "# TYPE ", 7) == 0) {
            char again[128];
            assert_int_equal(sscanf(line, "# TYPE %127s %31s", again, type), 2);
            assert_string_equal(again, name);
            bool counter = strcmp(type, "counter") == 0;
            assert_true(counter || strcmp(type, "gauge") == 0);
            size_t len = strlen(name);
            assert_int_equal(counter, len > 6 && strcmp(name + len - 6, "_total") == 0);
        } else {
            size_t len = strcspn(line, " {");
            assert_int_equal(len, strlen(name));
            assert_memory_equal(line, name, len);
            assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz_"), len);
            char *stop, *value = strrchr(line, ' ');
            strtod(value + 1, &stop);
            assert_true(stop > value + 1 && *stop == 0);
            n_samples++;
        }
        assert_null(strchr(line, '\r'));
    }
    assert_true(n_samples > 10);
}

static void expect_sample(const char *page, const char *line) {
    char want[256];
    snprintf(want, sizeof want, "\n%s\n", line);
    if (!strstr(page, want))
        fail_msg("expected the line \"%s\" in: %s", line, page);
}

static void metrics_are_served(void **state) {
    Tessera__Control__StepReport r = TESSERA__CONTROL__STEP_REPORT__INIT;
    (void)state;
    limits.metrics_port = 0;
    coordinator_start(&c, 0);
    assert_int_not_equal(c.address.metrics_port, 0);
    ranks_open(ranks, &c);
    r.step = 12;
    r.loss = 2.5;
    r.grad_norm = 0.25;
    r.lr = 0.001;
    r.tokens_per_s = 1000;
    r.mfu = 0.5;
    r.tokens = 4096;
    r.skipped = 3;
    r.rollbacks = 2;
    r.dropped_sequences = 48;
    tsr_agent_step(ranks[0].agent, &r);
    ranks_save(ranks, 12, 1);
    ranks_expect(ranks, 12, 0);
    for (bool there = false; !there; nap(0.01)) {
        char *a = request(c.address.metrics_port, "GET /metrics" END);
        there = strstr(a, "\ntessera_step 12\n");
        if (there) {
            char *page = strstr(a, "\r\n\r\n") + 4;
            assert_true(strncmp(a, "HTTP/1.1 200", 12) == 0);
            assert_non_null(strstr(a, "text/plain; version=0.0.4"));
            check_page(page);
            expect_sample(page, "tessera_loss 2.5");
            expect_sample(page, "tessera_gradient_norm 0.25");
            expect_sample(page, "tessera_tokens_per_second 1000");
            expect_sample(page, "tessera_mfu_ratio 0.5");
            expect_sample(page, "tessera_tokens_total 4096");
            expect_sample(page, "tessera_skipped_steps_total 3");
            expect_sample(page, "tessera_rollbacks_total 2");
            expect_sample(page, "tessera_dropped_sequences_total 48");
            expect_sample(page, "tessera_ranks_alive 3");
            expect_sample(page, "tessera_committed_step 12");
            expect_sample(page, "tessera_saves_total 1");
            expect_sample(page, "tessera_save_in_flight 0");
            assert_non_null(strstr(page, "\ntessera_save_seconds "));
        }
        free(a);
    }
    expect_answer("HEAD /metrics" END, "HTTP/1.1 200", "");
    expect_answer("GET /" END, "HTTP/1.1 404", "/metrics");
    expect_answer("DELETE /metrics" END, "HTTP/1.1 405", "Allow: GET, HEAD");
    expect_answer("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
                  "HTTP/1.1 405", "");
    for (int i = 0; i < 100; i++) // more than there are places: they are turned away, not kept
        close(connect_to(c.address.metrics_port));
    expect_answer("GET /metrics" END, "HTTP/1.1 200", "tessera_uptime_seconds");
    ranks_close(ranks);
    coordinator_stop(&c);
}

// A port that is taken costs the metrics, not the run.
static void without_its_port_the_run_goes_on(void **state) {
    static struct coordinator second;
    (void)state;
    limits.metrics_port = 0;
    coordinator_start(&c, 0);
    limits.metrics_port = c.address.metrics_port;
    coordinator_start(&second, 0);
    assert_int_equal(second.address.metrics_port, 0);
    tessera__control__status__free_unpacked(coordinator_status(&second), NULL);
    coordinator_stop(&second);
    coordinator_stop(&c);
}

static void labels_and_odd_numbers_are_written_as_the_format_wants(void **state) {
    Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
    Tessera__Control__StepReport last = TESSERA__CONTROL__STEP_REPORT__INIT;
    const struct tsr_metrics_extra extra = {.save_seconds = -1};
    struct tsr_buf page = {0};
    (void)state;
    s.run_name = (char *)"a \"b\"\\\nc\xff";
    s.run_dir = (char *)"/runs/x";
    s.has_last = true;
    s.last = &last;
    last.loss = NAN;
    last.grad_norm = INFINITY;
    last.lr = -INFINITY;
    expect_ok(tsr_metrics_page(&page, &s, &extra));
    check_page(page.data);
    assert_non_null(strstr(page.data, "name=\"a \\\"b\\\"\\\\\\nc\xef\xbf\xbd\""));
    expect_sample(page.data, "tessera_loss NaN");
    expect_sample(page.data, "tessera_gradient_norm +Inf");
    expect_sample(page.data, "tessera_learning_rate -Inf");
    assert_null(strstr(page.data, "tessera_save_seconds"));
    tsr_buf_free(&page);
}

// ---- the status command's views

static Tessera__Control__RankStatus rank_status[2] = {TESSERA__CONTROL__RANK_STATUS__INIT,
                                                      TESSERA__CONTROL__RANK_STATUS__INIT};
static Tessera__Control__RankStatus *rank_list[2] = {&rank_status[0], &rank_status[1]};
static Tessera__Control__StepReport last_report = TESSERA__CONTROL__STEP_REPORT__INIT;
static Tessera__Control__SaveStatus save_status = TESSERA__CONTROL__SAVE_STATUS__INIT;
static Tessera__Control__Status live = TESSERA__CONTROL__STATUS__INIT;

static struct tsr_status_view a_live_run(void) {
    rank_status[0].host = (char *)"node1";
    rank_status[1].host = (char *)"no\033[31mde2"; // must not colour the terminal
    rank_status[1].rank = 1;
    rank_status[0].alive = true;
    rank_status[0].phase = TESSERA__CONTROL__PHASE__PHASE_BACKWARD;
    last_report.step = 25;
    last_report.loss = 2.125;
    last_report.step_ms = 2000;
    last_report.skipped = 1;
    last_report.rollbacks = 2;
    last_report.dropped_sequences = 48;
    save_status.in_flight = true;
    save_status.step = 20;
    save_status.stage = (char *)"write";
    save_status.waiting_for = 1;
    live.run_name = (char *)"llama";
    live.run_dir = (char *)"/runs/llama";
    live.tp = 2;
    live.pp = live.dp = 1;
    live.steps = 100;
    live.committed_step = 10;
    live.has_last = true;
    live.last = &last_report;
    live.n_ranks = 2;
    live.ranks = rank_list;
    live.save = &save_status;
    return (struct tsr_status_view){.run_dir = "/runs/llama", .live = &live};
}

static void a_running_run_is_shown(void **state) {
    struct tsr_status_view v = a_live_run();
    struct tsr_buf plain = {0}, coloured = {0}, json = {0};
    (void)state;
    expect_ok(tsr_status_text(&plain, &v, false));
    assert_non_null(strstr(plain.data, "step    25 of 100  25.0 %  ETA 0:02:30"));
    assert_non_null(strstr(plain.data, "loss    2.1250"));
    assert_non_null(strstr(plain.data, "saved   step 10  step 20 in flight (write, waiting for 1 "
                                       "rank)"));
    assert_non_null(strstr(plain.data, "skipped 1 step, not finite or a spike\n"));
    assert_non_null(
        strstr(plain.data, "rolled  back 2 times, 48 sequences of the data left out\n"));
    assert_non_null(strstr(plain.data, "backward"));
    assert_null(strchr(plain.data, '\033'));
    expect_ok(tsr_status_text(&coloured, &v, true));
    assert_non_null(strstr(coloured.data, "[=======                       ]"));
    assert_non_null(strstr(coloured.data, "no?[31mde2"));
    expect_ok(tsr_status_json(&json, &v));
    assert_ptr_equal(strchr(json.data, '\n'), json.data + json.len - 1); // one line
    json_t *o = json_loadb(json.data, json.len, 0, NULL);
    assert_true(json_is_true(json_object_get(o, "running")));
    assert_int_equal(json_integer_value(json_object_get(o, "step")), 25);
    assert_int_equal(json_integer_value(json_object_get(o, "rollbacks")), 2);
    assert_int_equal(json_integer_value(json_object_get(o, "dropped_sequences")), 48);
    assert_int_equal(json_integer_value(json_object_get(o, "ranks_alive")), 1);
    assert_true(json_number_value(json_object_get(o, "eta_s")) == 150.0);
    assert_int_equal(json_array_size(json_object_get(o, "ranks")), 2);
    assert_true(json_is_true(json_object_get(json_object_get(o, "save"), "in_flight")));
    json_decref(o);
    tsr_buf_free(&plain);
    tsr_buf_free(&coloured);
    tsr_buf_free(&json);
}

static void numbers_that_are_none_are_shown_as_such(void **state) {
    struct tsr_status_view v = a_live_run();
    struct tsr_buf text = {0}, json = {0};
    (void)state;
    last_report.loss = NAN;
    last_report.step_ms = NAN;
    expect_ok(tsr_status_text(&text, &v, false));
    assert_non_null(strstr(text.data, "ETA ?"));
    expect_ok(tsr_status_json(&json, &v));
    json_t *o = json_loadb(json.data, json.len, 0, NULL);
    assert_true(json_is_null(json_object_get(o, "loss")));
    assert_null(json_object_get(o, "eta_s"));
    json_decref(o);
    tsr_buf_free(&text);
    tsr_buf_free(&json);
}

static void a_run_that_is_not_running_says_where_it_stopped(void **state) {
    struct tsr_status_view v = {.run_dir = "/runs/x", .why = "nobody there", .committed_step = 40};
    struct tsr_buf text = {0}, json = {0};
    (void)state;
    tessera__control__step_report__init(&v.metrics);
    v.has_metrics = true;
    v.metrics.step = 47;
    expect_ok(tsr_status_text(&text, &v, false));
    assert_non_null(strstr(text.data, "not running: nobody there"));
    assert_non_null(strstr(text.data, "step    47 was the last"));
    assert_non_null(strstr(text.data, "saved   step 40"));
    expect_ok(tsr_status_json(&json, &v));
    json_t *o = json_loadb(json.data, json.len, 0, NULL);
    assert_true(json_is_false(json_object_get(o, "running")));
    assert_int_equal(json_integer_value(json_object_get(o, "step")), 47);
    assert_int_equal(json_integer_value(json_object_get(o, "committed_step")), 40);
    json_decref(o);
    tsr_buf_free(&text);
    tsr_buf_free(&json);
}

static void a_finished_run_says_so(void **state) {
    struct tsr_status_view v = {.run_dir = "/runs/x", .why = "nobody there", .committed_step = 50};
    struct tsr_buf done = {0}, unsaved = {0}, json = {0};
    (void)state;
    tessera__control__step_report__init(&v.metrics);
    v.has_metrics = true;
    v.metrics.step = 50;
    v.steps = 50;
    expect_ok(tsr_status_text(&done, &v, false));
    assert_string_equal(done.data, "/runs/x  finished\nstep    50 of 50\n"
                                   "loss    0.0000  gradient norm 0  learning rate 0\n"
                                   "speed   0 tokens/s  0.0 ms a step  MFU 0.0 %\n"
                                   "saved   step 50\n");
    expect_ok(tsr_status_json(&json, &v));
    json_t *o = json_loadb(json.data, json.len, 0, NULL);
    assert_true(json_is_true(json_object_get(o, "finished")));
    assert_int_equal(json_integer_value(json_object_get(o, "steps")), 50);
    json_decref(o);
    v.committed_step = 40; // killed before its last checkpoint
    expect_ok(tsr_status_text(&unsaved, &v, false));
    assert_non_null(strstr(unsaved.data, "not running: nobody there"));
    assert_non_null(strstr(unsaved.data, "step    50 of 50 was the last"));
    tsr_buf_free(&done);
    tsr_buf_free(&unsaved);
    tsr_buf_free(&json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, control_setup, control_teardown)
        TEST(metrics_are_served),
        TEST(without_its_port_the_run_goes_on),
        TEST(labels_and_odd_numbers_are_written_as_the_format_wants),
        cmocka_unit_test(a_running_run_is_shown),
        cmocka_unit_test(numbers_that_are_none_are_shown_as_such),
        cmocka_unit_test(a_run_that_is_not_running_says_where_it_stopped),
        cmocka_unit_test(a_finished_run_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
