// malloc fails at every index of opening, sealing and feeding, in our code, in protobuf-c (whose
// allocator is ours) and inside OpenSSL: TSR_ENOMEM, nothing leaks, what was to be sent is as
// before, and the other connections go on. Linked with --wrap=malloc,calloc,realloc,free.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include "launcher/control/alloc.h"
#include "tests/unit/session_support.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

static long fail_at = -1; // allocations until the one that fails; negative: none does
static long live;         // blocks of ours, and of OpenSSL's
static long failures, own_failures;
static bool in_openssl;

static bool fails(void) {
    if (fail_at < 0 || fail_at-- > 0)
        return false;
    failures++;
    own_failures += !in_openssl;
    return true;
}

static void *counted(void *p) {
    live += p != NULL;
    return p;
}

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : counted(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n) {
    void *out = fails() ? NULL : __real_realloc(p, n);
    live += out && !p;
    return out;
}

void __wrap_free(void *p) {
    live -= p != NULL;
    __real_free(p);
}

static void *openssl_malloc(size_t n, const char *file, int line) {
    (void)file, (void)line;
    in_openssl = true;
    void *p = n == 0 ? NULL : __wrap_malloc(n);
    in_openssl = false;
    return p;
}

static void *openssl_realloc(void *p, size_t n, const char *file, int line) {
    (void)file, (void)line;
    in_openssl = true;
    p = __wrap_realloc(p, n);
    in_openssl = false;
    return p;
}

static void openssl_free(void *p, const char *file, int line) {
    (void)file, (void)line;
    __wrap_free(p);
}

struct attempt {
    struct pair p;
    struct tsr_session *opened;
    struct tsr_buf out;
};

// Runs `call` with the first, second, ... allocation failing until none fails any more; after each
// failure `failed` checks what it left behind. Returns how many indexes there were.
static long at_every_index(int (*begin)(struct attempt *), int (*call)(struct attempt *),
                           void (*failed)(struct attempt *)) {
    for (long i = 0;; i++) {
        struct attempt a = {0};
        const long before = live;
        assert_int_equal(begin(&a), 0);
        failures = own_failures = 0;
        fail_at = i;
        int rc = call(&a);
        fail_at = -1;
        if (own_failures || rc != 0) // OpenSSL does without some of its own, as for a cache
            assert_int_equal(rc, failures ? TSR_ENOMEM : 0);
        if (rc != 0 && failed)
            failed(&a);
        tsr_session_close(a.opened);
        tsr_buf_free(&a.out);
        pair_close(&a.p);
        ERR_clear_error();
        assert_int_equal(live, before);
        if (!failures)
            return i;
    }
}

static int begin_open(struct attempt *a) {
    (void)a;
    return 0;
}

static int call_open(struct attempt *a) {
    const struct tsr_session_opt opt = {.server = true};
    return tsr_session_open(&a->opened, &opt);
}

static int begin_shaken(struct attempt *a) {
    pair_shake(&a->p, ROLE(RANK), 1);
    return 0;
}

static int begin_open_pair(struct attempt *a) {
    pair_open(&a->p, 1);
    return 0;
}

static int call_challenge(struct attempt *a) {
    return pair_challenge(&a->p, &a->out);
}

static void nothing_sealed(struct attempt *a) {
    assert_int_equal(a->out.len, 0);
}

// As if it had not been tried: sealed once more it is accepted.
static void challenge_again(struct attempt *a) {
    nothing_sealed(a);
    assert_int_equal(pair_challenge(&a->p, &a->p.to_client), 0);
    assert_int_equal(to_client(&a->p), 0);
}

static int begin_hello(struct attempt *a) {
    pair_open(&a->p, 1);
    TSR_TRY(pair_challenge(&a->p, &a->p.to_client));
    return to_client(&a->p);
}

static int call_hello(struct attempt *a) {
    return pair_hello(&a->p, ROLE(RANK), &a->out);
}

static void hello_again(struct attempt *a) {
    nothing_sealed(a);
    assert_false(tsr_session_ready(a->p.client));
    assert_int_equal(pair_hello(&a->p, ROLE(RANK), &a->p.to_server), 0);
    assert_int_equal(to_server(&a->p), 0);
}

static int seal_map(struct attempt *a, struct tsr_buf *out) {
    Tessera__Checkpoint__Region region = TESSERA__CHECKPOINT__REGION__INIT, *regions[40];
    Tessera__Checkpoint__TensorShards shards = TESSERA__CHECKPOINT__TENSOR_SHARDS__INIT,
                                      *tensors[] = {&shards, &shards};
    Tessera__Checkpoint__ShardMap map = TESSERA__CHECKPOINT__SHARD_MAP__INIT;
    region.r1 = region.c1 = 300;
    for (size_t i = 0; i < 40; i++)
        regions[i] = &region;
    shards.name = (char[]){"a.name"};
    shards.regions = regions;
    shards.n_regions = 40;
    map.tensors = tensors;
    map.n_tensors = 2;
    return tsr_session_seal(a->p.client, FRAME(SHARD_MAP), &map.base, out);
}

static int call_seal(struct attempt *a) {
    return seal_map(a, &a->out);
}

static void seal_again(struct attempt *a) {
    nothing_sealed(a);
    assert_int_equal(seal_map(a, &a->p.to_server), 0);
    assert_int_equal(to_server(&a->p), 0);
}

static int accept_frame(void *arg, uint16_t type, const ProtobufCMessage *m) {
    (void)type, (void)m;
    ++*(int *)arg;
    return 0;
}

static int begin_feed(struct attempt *a) {
    pair_shake(&a->p, ROLE(RANK), 1);
    return seal_map(a, &a->p.to_server);
}

static int begin_feed_hello(struct attempt *a) {
    TSR_TRY(begin_hello(a));
    return pair_hello(&a->p, ROLE(RANK), &a->p.to_server);
}

static int begin_feed_challenge(struct attempt *a) {
    pair_open(&a->p, 1);
    return pair_challenge(&a->p, &a->p.to_client);
}

// A frame is taken once or not at all, and after a failure the session is over.
static int feed_parts(struct tsr_session *s, const struct tsr_buf *b) {
    int n = 0, rc = tsr_session_feed(s, b->data, 30, accept_frame, &n);
    if (rc == 0)
        rc = tsr_session_feed(s, b->data + 30, b->len - 30, accept_frame, &n);
    assert_int_equal(n, rc == 0);
    return rc;
}

static int call_feed_server(struct attempt *a) {
    return feed_parts(a->p.server, &a->p.to_server);
}

static int call_feed_client(struct attempt *a) {
    return feed_parts(a->p.client, &a->p.to_client);
}

static void server_is_over(struct attempt *a) {
    assert_int_equal(tsr_session_feed(a->p.server, "x", 1, accept_frame, NULL), TSR_EREQUEST);
}

static void client_is_over(struct attempt *a) {
    assert_int_equal(tsr_session_feed(a->p.client, "x", 1, accept_frame, NULL), TSR_EREQUEST);
}

static void every_index(void **state) {
    (void)state;
    assert_true(at_every_index(begin_open, call_open, NULL) >= 1);
    assert_true(at_every_index(begin_open_pair, call_challenge, challenge_again) >= 3);
    assert_true(at_every_index(begin_hello, call_hello, hello_again) >= 3);
    assert_true(at_every_index(begin_shaken, call_seal, seal_again) >= 80);
    assert_true(at_every_index(begin_feed_challenge, call_feed_client, client_is_over) >= 3);
    assert_true(at_every_index(begin_feed_hello, call_feed_server, server_is_over) >= 3);
    assert_true(at_every_index(begin_feed, call_feed_server, server_is_over) >= 80);
}

// What OpenSSL sets up once per process and thread is there before anything fails.
static int warm_up(void **state) {
    struct pair p;
    (void)state;
    ERR_raise(ERR_LIB_USER, ERR_R_MALLOC_FAILURE);
    ERR_clear_error();
    pair_shake(&p, ROLE(RANK), 1);
    pair_close(&p);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_index)};
    TSR_ASSERT(CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) == 1);
    return cmocka_run_group_tests(tests, warm_up, NULL);
}
