// The maximum over ranks' values, in the tree's order and with a NaN winning, as the host's
// transport joins them (dist/comm_tree.c): the same bits, the sign of zero and the NaN included.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

DEVICE float larger(float a, float b) {
    return a > b || a != a ? a : b;
}

// The binary counter of core/pieces.h.
__global__ void __launch_bounds__(256)
    tree_max_kernel(float *out, const float *const *in, int n_in, int64_t n) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n)
        return;
    float node[32];
    int top = 0;
    for (int k = 0; k < n_in; k++) {
        node[top++] = in[k][at];
        for (unsigned i = (unsigned)k; i & 1; i >>= 1, top--)
            node[top - 2] = larger(node[top - 2], node[top - 1]);
    }
    for (; top > 1; top--)
        node[top - 2] = larger(node[top - 2], node[top - 1]);
    out[at] = node[0];
}

int tsr_cuda_tree_max(void *stream, float *out, const float *const *in, int n_in, size_t n) {
    if (n == 0)
        return 0;
    return launch_kernel("tree_max", tree_max_kernel, dim3(blocks_for((int64_t)n, 256)), 256, 0,
                         stream, out, in, n_in, (int64_t)n);
}
