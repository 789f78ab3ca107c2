// Asks the kernels' own choice of tiles, without a launch.
#include "kernels/cuda/gemm.cuh"

static const char *chosen;
template <class... P>
static int note_tile(const char *name, void (*)(P...), void *, const gemm_args &, int, int, int,
                     size_t) {
    chosen = name;
    return 0;
}
#define launch_gemm note_tile
#include "kernels/cuda/gemm_mma.cuh"
#undef launch_gemm
#include "tests/gpu/bench_device.h"

const char *tile_of(int m, int n, int n_pieces, enum tile_layout layout, int n_sms) {
    struct gemm_call call = {};
    call.args.m = m;
    call.args.n = n;
    call.args.n_pieces = n_pieces;
    call.args.n_nodes = gemm_nodes(n_pieces);
    call.layout = (enum gemm_layout)layout;
    call.wide_in = true;
    call.n_sms = n_sms;
    call.max_shared = 227 * 1024;
    gemm_mma<bf16>(nullptr, &call);
    return chosen;
}
