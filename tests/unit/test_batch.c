// A micro-batch: what the device gets of it, and how its logits are cut.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>
#include "core/error.h"
#include "dist/ends.h"

// Stretches follow each other without a gap, none is longer than the first, and each begins a
// sequence or stands at a multiple of 1024 rows of one: a product's groups of 16 terms are the
// same however many sequences the micro-batch has.
static void check_cuts(int n_seqs, int seq_len, int n_pieces) {
    struct tsr_batch b = {
        .n_seqs = n_seqs, .seq_len = seq_len, .n = n_seqs * seq_len, .n_pieces = n_pieces};
    int first = tsr_head_rows(&b, 0), at = 0;
    for (int n; at < b.n; at += n) {
        n = tsr_head_rows(&b, at);
        assert_in_range(n, 1, first);
        assert_int_equal(at % seq_len % 1024, 0);
        assert_true((at + n) % seq_len == 0 || at / seq_len == (at + n) / seq_len);
        if (n_pieces == 1 && b.n > 1024)
            assert_in_range(n, 1, 1024);
        else
            assert_int_equal(n, b.n);
    }
    assert_int_equal(at, b.n);
}

static void test_head_rows(void **state) {
    (void)state;
    static const int lengths[] = {1, 7, 20, 512, 513, 1000, 1023, 1024, 1025, 2048, 2500, 5000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int n_seqs = 1; n_seqs <= 9; n_seqs++) {
            check_cuts(n_seqs, lengths[i], 1);
            check_cuts(n_seqs, lengths[i], n_seqs);
        }
    struct tsr_batch tokens = {.n_seqs = 1, .seq_len = 4096, .n = 1500, .n_pieces = 1};
    assert_int_equal(tsr_head_rows(&tokens, 0), 1024); // inference: a part of a sequence
    assert_int_equal(tsr_head_rows(&tokens, 1024), 476);
}

// The device's copies change when they are uploaded, not before.
static void test_upload(void **state) {
    (void)state;
    struct tsr_ctx ctx;
    struct tsr_net net = {.ctx = &ctx, .mesh = {.V = 4, .tp = 2, .tp_rank = 1}, .Vl = 2};
    struct tsr_batch b;
    net.opt.sequence_parallel = true;
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 1), 0);
    assert_int_equal(tsr_batch_open(&b, &net, 3, 5), 0);
    for (int i = 0; i < b.n; i++) {
        b.ids[i] = 100 + i;
        b.targets[i] = 200 + i;
    }
    tsr_batch_map(&b, &net, 0, 0, 3, NULL);
    assert_int_equal(b.n_local, 3 * 3); // tokens 2 to 4 of each sequence
    assert_int_equal(b.device.ids[3], 0);
    assert_int_equal(tsr_batch_upload(&b), 0);
    assert_int_equal(ctx.ops->sync(&ctx), 0);
    for (int i = 0; i < b.n; i++) {
        assert_int_equal(b.device.ids[i], 100 + i);
        assert_int_equal(b.device.targets[i], 200 + i);
        assert_int_equal(b.device.pos[i], i % 5);
    }
    for (int i = 0; i < b.n_local; i++)
        assert_int_equal(b.device.pos_local[i], 2 + i % 3);
    b.ids[0] = -7;
    assert_int_equal(b.device.ids[0], 100);
    size_t slab = tsr_batch_slab_bytes(3, 5);
    assert_int_equal(ctx.ops->allocated(&ctx), slab);
    assert_true(tsr_batch_bytes(&net, 3, 5) > 2 * slab);
    tsr_batch_close(&b);
    assert_int_equal(ctx.ops->allocated(&ctx), 0);
    ctx.ops->close(&ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_rows),
        cmocka_unit_test(test_upload),
    };
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
