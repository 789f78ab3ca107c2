// The one tree (core/pieces.h) over leaves that come in ascending order.
#ifndef TSR_KERNELS_CPU_ISA_TREE_H
#define TSR_KERNELS_CPU_ISA_TREE_H

#include "core/pieces.h"
#include "kernels/cpu/isa/simd.h"

enum { TSR_TREE_DEPTH = 32 };

// Over single numbers, every leaf there: finished subtrees are added like the carries of a binary
// counter.
struct tsr_tree {
    int n, top;
    float node[TSR_TREE_DEPTH];
};

static inline void tsr_tree_leaf(struct tsr_tree *t, float leaf) {
    t->node[t->top++] = leaf;
    for (int k = tsr_tree_carries(t->n++); k > 0; k--) {
        t->top--;
        t->node[t->top - 1] = t->node[t->top - 1] + t->node[t->top];
    }
}

// What stands at the end is folded newest first; +0 without leaves.
static inline float tsr_tree_root(const struct tsr_tree *t) {
    float sum = t->top > 0 ? t->node[t->top - 1] : 0.0f;
    for (int i = t->top - 2; i >= 0; i--)
        sum = t->node[i] + sum;
    return sum;
}

// Over vectors, where leaves may be absent: such a leaf is +0, and adding it would change at most
// a -0, so it is left out. Neighbours meet at the level of the highest bit in which their indices
// differ.
struct v16_tree {
    int top;
    unsigned index[TSR_TREE_DEPTH]; // first leaf of each node
    v16 node[TSR_TREE_DEPTH];
};

// `a` and `b` meet below the level where `b` and `c` do.
V16_FN bool v16_tree_meets_first(unsigned a, unsigned b, unsigned c) {
    return __builtin_clz(a ^ b) > __builtin_clz(b ^ c);
}

// Leaf number i, above all earlier ones.
V16_FN void v16_tree_leaf(struct v16_tree *t, unsigned i, v16 leaf) {
    while (t->top > 1 && v16_tree_meets_first(t->index[t->top - 2], t->index[t->top - 1], i)) {
        t->top--;
        t->node[t->top - 1] = v16_add(t->node[t->top - 1], t->node[t->top]);
    }
    t->index[t->top] = i;
    t->node[t->top++] = leaf;
}

V16_FN v16 v16_tree_root(const struct v16_tree *t) {
    v16 sum = t->top > 0 ? t->node[t->top - 1] : v16_zero();
    for (int i = t->top - 2; i >= 0; i--)
        sum = v16_add(t->node[i], sum);
    return sum;
}

#endif
