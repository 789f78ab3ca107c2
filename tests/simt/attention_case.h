// One attention problem for the device and for its CPU twin.
#ifndef TSR_TESTS_SIMT_ATTENTION_CASE_H
#define TSR_TESTS_SIMT_ATTENTION_CASE_H

#include <vector>
#include "tests/simt/util.h"

struct attention_shape {
    std::vector<int> lengths; // of the segments
    int nq, nkv, d, window;
    float drop;
};

// Edge shapes: lengths round a tile, uneven groups, several documents, windows, dropout.
inline std::vector<attention_shape> attention_shapes() {
    std::vector<attention_shape> all;
    int i = 0;
    for (int t : {1, 63, 64, 65, 127, 200})
        for (int d : {64, 80, 128})
            if ((i++ + t) % 2 == 0)
                all.push_back({{t}, 5, 1, d, 0, 0.0f});
            else
                all.push_back({{t}, 9, 3, d, 0, 0.0f});
    all.push_back({{70}, 1, 1, 96, 0, 0.0f});
    all.push_back({{66}, 1, 1, 256, 0, 0.0f});
    all.push_back({{200}, 3, 1, 128, 50, 0.0f});
    all.push_back({{130}, 2, 2, 80, 1, 0.0f});
    all.push_back({{17, 1, 90, 64}, 2, 1, 64, 0, 0.0f});
    all.push_back({{33, 100}, 3, 3, 128, 40, 0.25f});
    all.push_back({{140}, 2, 1, 64, 0, 0.1f});
    return all;
}

template <class T> struct attention_case {
    std::vector<struct tsr_segment> segs;
    std::vector<struct tsr_kv_slot> slots; // a slot for each query head, and one for a whole group
    struct tsr_attn a;
    struct tsr_cuda_attn dev;
    int n;
    both<T> q, k, v, d_o, o, dq, dk, dv;
    both<float> lse;

    // Rows are a few elements wider than their heads, and the heads are 3 query heads into the
    // model's; positions start at `offset` in every other segment.
    attention_case(const attention_shape &s, int offset, int gap) : a(), dev() {
        int start = 0, longest = 0, group = s.nq / s.nkv;
        for (size_t i = 0; i < s.lengths.size(); i++) {
            segs.push_back({start, s.lengths[i], i % 2 == 0 ? offset : 0, 1000 + i, nullptr});
            start += s.lengths[i];
            longest = s.lengths[i] > longest ? s.lengths[i] : longest;
        }
        n = start;
        for (int h = 0; h < s.nkv; h++) {
            if (group > 2)
                slots.push_back({h * group, group - 1, h, 0});
            slots.push_back({h * group + (group > 2 ? group - 1 : 0), group > 2 ? 1 : group, h, 1});
        }
        a.q0 = 2 * group;
        a.nq = s.nq;
        a.kv0 = 2;
        a.nkv = s.nkv;
        a.group = group;
        a.head_dim = s.d;
        a.scale = 1.0f / std::sqrt((float)s.d);
        a.window = s.window;
        a.drop = {s.drop, {11, 12}};
        a.n_segs = (int)segs.size();
        a.segs = segs.data();
        a.n_tokens = n;
        a.ldq = a.ldo = s.nq * s.d + gap;
        a.ldk = s.nkv * s.d + gap;
        a.ldv = s.nkv * s.d + 2 * gap;
        dev = {a.q0,
               a.nq,
               a.kv0,
               a.nkv,
               a.group,
               s.d,
               a.scale,
               a.window,
               a.drop,
               tsr_drop_threshold(s.drop),
               a.n_segs,
               longest,
               segments_of(a.segs, a.n_segs).dev,
               n,
               a.ldq,
               a.ldk,
               a.ldv,
               a.ldo,
               0,
               0,
               nullptr,
               0};
        q = random_values<T>((size_t)(n * a.ldq), 2.0f);
        k = random_values<T>((size_t)(n * a.ldk), 2.0f);
        v = random_values<T>((size_t)(n * a.ldv), 1.0f);
        d_o = random_values<T>((size_t)(n * a.ldo), 1.0f);
        o = random_values<T>((size_t)(n * a.ldo), 0.0f);
        dq = random_values<T>((size_t)(n * a.ldq), 0.0f);
        dk = blank<T>((size_t)n * slots.size() * (size_t)s.d);
        dv = blank<T>((size_t)n * slots.size() * (size_t)s.d);
        lse = blank<float>((size_t)(n * s.nq));
    }

    void forward_cpu() {
        cpu.ops->attention(&cpu, &a, o.cpu, lse.cpu, q.cpu, k.cpu, v.cpu);
    }
    void forward_dev() {
        assert_int_equal(
            tsr_cuda_attention(nullptr, dtype_of<T>, &dev, o.dev, lse.dev, q.dev, k.dev, v.dev), 0);
    }
    void backward_cpu() {
        cpu.ops->attention_bwd(&cpu, &a, slots.data(), (int)slots.size(), dq.cpu, dk.cpu, dv.cpu,
                               d_o.cpu, o.cpu, lse.cpu, q.cpu, k.cpu, v.cpu);
    }
    void backward_dev() {
        struct tsr_kv_slot *s = copy_array(slots.data(), slots.size());
        assert_int_equal(tsr_cuda_attention_bwd(
                             nullptr, dtype_of<T>, &dev, s, (int)slots.size(), dq.dev, dk.dev,
                             dv.dev, d_o.dev, o.dev, lse.dev, q.dev, k.dev, v.dev,
                             simt::array<float>(tsr_cuda_attention_bwd_scratch(dtype_of<T>, &dev))),
                         0);
    }
};

// The keys and values of `c` moved into a paged cache, whose pages lie in another order.
template <class T> struct paged_case {
    both<T> k, v;
    std::vector<struct tsr_kv_cache> caches;
    std::vector<std::vector<int32_t>> blocks;

    // Every segment continues a sequence: keys before it are random.
    paged_case(attention_case<T> &c, int block_tokens) {
        int width = c.a.nkv * c.a.head_dim, n_blocks = 0;
        struct tsr_cuda_segment *dev = copy_array(c.dev.segs, c.segs.size());
        for (const struct tsr_segment &s : c.segs) {
            int need = (s.position + s.length + block_tokens - 1) / block_tokens;
            blocks.push_back({});
            for (int i = need; i-- > 0;)
                blocks.back().push_back(n_blocks + i);
            n_blocks += need;
        }
        k = random_values<T>((size_t)(n_blocks * block_tokens * width), 2.0f);
        v = random_values<T>((size_t)(n_blocks * block_tokens * width), 1.0f);
        caches.resize(c.segs.size());
        for (size_t i = 0; i < c.segs.size(); i++) {
            caches[i] = {k.cpu, v.cpu, blocks[i].data(), block_tokens, (int)blocks[i].size()};
            c.segs[i].cache = &caches[i];
            dev[i].k = k.dev;
            dev[i].v = v.dev;
            dev[i].blocks = copy_array(blocks[i].data(), blocks[i].size());
            dev[i].block_tokens = block_tokens;
        }
        c.dev.segs = dev;
    }
};

#endif
