// Attention of few queries over paged caches: against the CPU twin, and bit for bit against the
// kernels that do prompts, whatever the batch, the grid, the scratch and the chunks.
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/attention_f32.cu"
#include "kernels/cuda/decode.cu"
#include "kernels/cuda/decode_f32.cu"
#include "kernels/cuda/flash.cu"
#include "kernels/cuda/kv.cu"
#include "tests/simt/attention_case.h"

// A batch of segments at given positions over caches with blocks of some size.
template <class T> struct decode_case : attention_case<T> {
    paged_case<T> *pages = nullptr;

    decode_case(const attention_shape &s, const std::vector<int> &positions, int block_tokens,
                int gap = 0)
        : attention_case<T>(s, 0, gap) {
        struct tsr_cuda_segment *dev = copy_array(this->dev.segs, this->segs.size());
        for (size_t i = 0; i < this->segs.size(); i++)
            dev[i].position = this->segs[i].position = positions[i];
        this->dev.segs = dev;
        pages = new paged_case<T>(*this, block_tokens);
        forget_unused(block_tokens);
    }
    ~decode_case() {
        delete pages;
    }
    decode_case(const decode_case &) = delete;

    // Rows of the caches that hold no key yet: no number.
    void forget_unused(int block_tokens) {
        int width = this->a.nkv * this->a.head_dim;
        for (size_t i = 0; i < this->segs.size(); i++) {
            const std::vector<int32_t> &blocks = pages->blocks[i];
            int n = (int)blocks.size() * block_tokens;
            for (int p = this->segs[i].position + this->segs[i].length; p < n; p++) {
                int row = blocks[(size_t)(p / block_tokens)] * block_tokens + p % block_tokens;
                memset(pages->k.dev + row * width, 0xff, (size_t)width * sizeof(T));
                memset(pages->v.dev + row * width, 0xff, (size_t)width * sizeof(T));
            }
        }
    }

    // The way of few queries, for tables with room for `spare` more keys than there are.
    void take_few(int spare) {
        struct tsr_cuda_attn &d = this->dev;
        d.n_few = d.n_keys = 0;
        for (const struct tsr_segment &s : this->segs)
            if (s.cache != nullptr && s.length <= TSR_CUDA_FEW) {
                d.n_few++;
                d.n_keys = std::max(d.n_keys, s.position + s.length + spare);
            }
        d.scratch_bytes = tsr_cuda_attention_scratch(dtype_of<T>, &d);
        d.scratch = simt::array<char>(d.scratch_bytes);
    }
    // As little scratch as is possible with `blocks` blocks of keys in a pass.
    void take_passes(int blocks) {
        decode_plan p = decode_sizes(dtype_of<T>, &this->dev);
        this->dev.scratch_bytes =
            (fixed_floats(p, this->a.head_dim, true) + (size_t)blocks * block_floats(p)) *
            sizeof(float);
        this->dev.scratch = simt::array<char>(this->dev.scratch_bytes);
    }

    void expect_twin() {
        this->forward_cpu();
        expect_same(this->o, 3.0f, 1.0f); // as in test_flash.cc
        for (size_t i = 0; i < this->lse.n; i++)
            if (!(std::fabs(this->lse.dev[i] - this->lse.cpu[i]) <= 2e-5f))
                fail_msg("lse %zu: found %.9g, the twin has %.9g", i, this->lse.dev[i],
                         this->lse.cpu[i]);
        if (sizeof(T) == 4)
            expect_same(this->lse);
    }

    // The results, and those of the kernels for prompts, are the same bits.
    void expect_as_prompt() {
        std::vector<T> o(this->o.dev, this->o.dev + this->o.n);
        std::vector<float> lse(this->lse.dev, this->lse.dev + this->lse.n);
        memset(this->o.dev, 0xff, this->o.n * sizeof(T));
        memset(this->lse.dev, 0xff, this->lse.n * sizeof(float));
        int n_few = this->dev.n_few;
        this->dev.n_few = 0;
        this->forward_dev();
        this->dev.n_few = n_few;
        size_t used = (size_t)(this->a.nq * this->a.head_dim), ld = (size_t)this->a.ldo;
        for (size_t i = 0; i < (size_t)this->n; i++)
            assert_memory_equal(this->o.dev + i * ld, &o[i * ld], used * sizeof(T));
        assert_memory_equal(this->lse.dev, lse.data(), lse.size() * sizeof(float));
    }

    void check(int spare = 0) {
        take_few(spare);
        assert_true(this->dev.n_few > 0);
        this->forward_dev();
        expect_twin();
        expect_as_prompt();
    }
};

static const int gap_of[] = {0, 8};

template <class T> static void test_shapes(void **) {
    const attention_shape shapes[] = {
        {{1, 1, 1}, 4, 4, 64, 0, 0.0f},  {{1, 1, 1}, 8, 1, 128, 0, 0.0f},
        {{2, 8, 5}, 6, 2, 80, 0, 0.0f},  {{8, 1, 3}, 5, 1, 96, 0, 0.0f},
        {{1, 4, 1}, 3, 1, 256, 0, 0.0f}, {{7, 8, 1}, 9, 3, 64, 0, 0.0f},
        {{1, 2, 1}, 20, 1, 64, 0, 0.0f}};
    const std::vector<int> positions[] = {{0, 1, 62}, {63, 64, 65}, {127, 300, 17}};
    const int blocks[] = {1, 7, 16, 64};
    int i = sizeof(T) == 4 ? 0 : 1; // types take turns with positions
    for (const attention_shape &s : shapes) {
        decode_case<T> c(s, positions[i % 3], blocks[i % 4], gap_of[i % 2]);
        c.check(i % 3 * 100);
        i++;
        simt::free_all();
    }
}

static void test_any_head_size(void **) {
    for (int d : {1, 7, 17, 100}) {
        decode_case<float> c({{1, 3}, 4, 2, d, 0, 0.0f}, {70, 130}, 16, 3);
        c.check();
    }
}

template <class T> static void test_windows(void **) {
    for (int window : {1, 64, 1000})
        for (int position : {5, 63, 200}) {
            decode_case<T> c({{8, 1}, 3, 1, 64, window, 0.0f}, {position, position + 130}, 7);
            c.check();
            c.take_passes(1);
            c.forward_dev();
            c.expect_as_prompt();
            simt::free_all();
        }
}

// Little scratch: several passes, of which some have nothing to do for some tiles.
template <class T> static void test_passes(void **) {
    for (int blocks : {1, 2, 3}) {
        int d = blocks == 2 ? 256 : 80;
        decode_case<T> c({{1, 8, 2}, 6, 2, d, 0, 0.0f}, {300, 3, 130}, 16);
        c.take_few(200);
        c.take_passes(blocks);
        c.forward_dev();
        c.expect_twin();
        c.expect_as_prompt();
        simt::free_all();
    }
}

// So many sequences that values are read in wide slices, and a tile's keys by one block.
template <class T> static void test_many(void **) {
    std::vector<int> lengths, positions;
    for (int i = 0; i < 128; i++) {
        lengths.push_back(1);
        positions.push_back(i * 7 % 90);
    }
    decode_case<T> c({lengths, 4, 2, 64, 0, 0.0f}, positions, 16);
    c.check();
}

// Heads of a rank whose first and last KV heads are shared with other ranks.
template <class T> static void test_shared_heads(void **) {
    decode_case<T> c({{1, 6}, 5, 2, 64, 0, 0.0f}, {90, 64}, 16);
    c.a.group = c.dev.group = 4;
    c.a.q0 = c.dev.q0 = 6;
    c.a.kv0 = c.dev.kv0 = 1;
    c.check();
}

// Long segments and segments without a cache take the other way; empty ones, none.
template <class T> static void test_mixed(void **) {
    decode_case<T> c({{1, 30, 8, 9, 0}, 4, 2, 64, 0, 0.0f}, {90, 40, 64, 0, 12}, 16);
    c.check();
    assert_int_equal(c.dev.n_few, 3);
    struct tsr_cuda_segment *own = copy_array(c.dev.segs, 5);
    own[0].k = own[0].v = nullptr;
    c.segs[0].cache = nullptr;
    c.dev.segs = own;
    c.check();
    assert_int_equal(c.dev.n_few, 2);
}

// One sequence in chunks, long and short, is the sequence in one go.
template <class T> static void test_chunks(void **) {
    enum { N = 180 };
    const int chunks[] = {70, 1, 3, 8, 33, 2, 1, 1, 61};
    for (int block_tokens : {1, 7, 16, 64})
        for (int window : {0, 50}) {
            attention_shape shape = {{N}, 4, 2, 64, window, 0.0f};
            decode_case<T> whole(shape, {0}, block_tokens);
            whole.forward_dev();
            std::vector<T> o(whole.o.dev, whole.o.dev + whole.o.n);
            std::vector<float> lse(whole.lse.dev, whole.lse.dev + whole.lse.n);
            memset(whole.o.dev, 0xff, whole.o.n * sizeof(T));
            memset(whole.lse.dev, 0xff, whole.lse.n * sizeof(float));
            int from = 0;
            for (int length : chunks) {
                struct tsr_cuda_segment *seg = copy_array(whole.dev.segs, 1);
                seg->start = seg->position = from;
                seg->length = length;
                whole.dev.segs = seg;
                whole.dev.max_length = length;
                whole.dev.n_few = length <= TSR_CUDA_FEW;
                whole.dev.n_keys = N;
                whole.dev.scratch_bytes = tsr_cuda_attention_scratch(dtype_of<T>, &whole.dev);
                whole.dev.scratch = simt::array<char>(whole.dev.scratch_bytes);
                whole.forward_dev();
                from += length;
            }
            assert_int_equal(from, N);
            assert_memory_equal(whole.o.dev, o.data(), o.size() * sizeof(T));
            assert_memory_equal(whole.lse.dev, lse.data(), lse.size() * sizeof(float));
            simt::free_all();
        }
}

// Sizes, and so launches, don't depend on where the sequences are; large ones are bounded.
static void test_scratch(void **) {
    decode_case<bf16> c({{1, 1}, 4, 2, 64, 0, 0.0f}, {200, 3}, 16);
    c.take_few(0);
    size_t bytes = c.dev.scratch_bytes;
    struct tsr_cuda_segment *seg = copy_array(c.dev.segs, 2);
    seg[0].position = 1;
    c.dev.segs = seg;
    assert_int_equal(tsr_cuda_attention_scratch(TSR_DT_BF16, &c.dev), bytes);
    c.dev.n_keys = 1 << 24;
    bytes = tsr_cuda_attention_scratch(TSR_DT_BF16, &c.dev);
    assert_true(bytes > (size_t)128 << 20 && bytes < (size_t)512 << 20);
    c.dev.n_few = 0;
    assert_int_equal(tsr_cuda_attention_scratch(TSR_DT_BF16, &c.dev), 0);
}

static void test_refusals(void **) {
    decode_case<bf16> c({{1}, 1, 1, 64, 0, 0.0f}, {4}, 16);
    c.take_few(1000);
    c.take_passes(1);
    c.dev.scratch_bytes -= 4;
    assert_int_equal(tsr_cuda_attention(nullptr, TSR_DT_BF16, &c.dev, c.o.dev, nullptr, c.q.dev,
                                        c.k.dev, c.v.dev),
                     TSR_EUSAGE);
    c.take_few(100);
    c.dev.ldq = 65;
    assert_int_equal(tsr_cuda_attention(nullptr, TSR_DT_BF16, &c.dev, c.o.dev, nullptr, c.q.dev,
                                        c.k.dev, c.v.dev),
                     TSR_EUSAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPED(test_shapes, float),
                                       TEST_TYPED(test_shapes, bf16),
                                       TEST(test_any_head_size),
                                       TEST_TYPED(test_windows, float),
                                       TEST_TYPED(test_windows, bf16),
                                       TEST_TYPED(test_passes, float),
                                       TEST_TYPED(test_passes, bf16),
                                       TEST_TYPED(test_many, float),
                                       TEST_TYPED(test_many, bf16),
                                       TEST_TYPED(test_mixed, float),
                                       TEST_TYPED(test_mixed, bf16),
                                       TEST_TYPES(test_shared_heads),
                                       TEST_TYPED(test_chunks, float),
                                       TEST_TYPED(test_chunks, bf16),
                                       TEST(test_scratch),
                                       TEST(test_refusals)};
    return run_in_both_orders(tests);
}
