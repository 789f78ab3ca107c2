// Joining ranks' values by the tree of core/pieces.h. A sum must not depend on the transport, so
// all of them come here.
#include <string.h>
#include "dist/comm_mpi.h"

// Four floats at any address: without this the compiler's cheap cost model leaves scalar loops.
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));

void tsr_join_add(float *out, const float *a, const float *b, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        *(vec4 *)(out + i) = *(const vec4 *)(a + i) + *(const vec4 *)(b + i);
    for (; i < n; i++)
        out[i] = a[i] + b[i];
}

// A NaN wins, so that no rank's failure is lost.
void tsr_join_max(float *out, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = a[i] > b[i] || a[i] != a[i] ? a[i] : b[i];
}

enum { BLOCK = 256, DEPTH = 32 };

// The binary counter of core/pieces.h; leaves enter in pairs, straight from memory. in[i] + at.
static void join_block(tsr_joiner *join, float *out, const float *const *in, int n_in, size_t at,
                       size_t n) {
    float stack[DEPTH][BLOCK];
    int top = 0;
    for (int i = 0; i < n_in; i += 2) {
        if (i + 1 == n_in) {
            memcpy(stack[top++], in[i] + at, n * sizeof *out);
            break;
        }
        join(stack[top++], in[i] + at, in[i + 1] + at, n);
        for (int k = tsr_tree_carries(i + 1); k > 1; k--, top--)
            join(stack[top - 2], stack[top - 2], stack[top - 1], n);
    }
    for (; top > 1; top--)
        join(stack[top - 2], stack[top - 2], stack[top - 1], n);
    memcpy(out + at, stack[0], n * sizeof *out);
}

void tsr_tree_join(tsr_joiner *join, float *out, const float *const *in, int n_in, size_t n) {
    if (n_in == 2) {
        join(out, in[0], in[1], n);
        return;
    }
    for (size_t at = 0; at < n; at += BLOCK)
        join_block(join, out, in, n_in, at, n - at < BLOCK ? n - at : BLOCK);
}
