#include "tests/simt/simt.h"

namespace simt {

void shuffle(void *const args[32]) {
    for (int i = 0; i < 32; i++) {
        shuffle_arg *a = (shuffle_arg *)args[i];
        a->out = ((const shuffle_arg *)args[a->from])->in;
    }
}

void ballot(void *const args[32]) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++)
        bits |= (uint32_t)((const ballot_arg *)args[i])->in << i;
    for (int i = 0; i < 32; i++)
        ((ballot_arg *)args[i])->out = bits;
}

static uint16_t element(void *const args[32], int matrix, int row, int col) {
    uint16_t x;
    memcpy(&x, ((const matrix_arg *)args[8 * matrix + row])->row + 2 * col, 2);
    return x;
}

static void load(void *const args[32], bool transposed) {
    uint32_t out[32][4];
    for (int i = 0; i < 32; i++)
        for (int m = 0; m < 4; m++) {
            int row = i / 4, col = i % 4 * 2;
            uint32_t lo = transposed ? element(args, m, col, row) : element(args, m, row, col);
            uint32_t hi =
                transposed ? element(args, m, col + 1, row) : element(args, m, row, col + 1);
            out[i][m] = lo | hi << 16;
        }
    for (int i = 0; i < 32; i++)
        memcpy(((const matrix_arg *)args[i])->out, out[i], sizeof out[i]);
}

void load_matrices(void *const args[32]) {
    load(args, false);
}
void load_matrices_trans(void *const args[32]) {
    load(args, true);
}

template <class T> static float half_of(uint32_t pair, int i) {
    return to_float(T{(uint16_t)(pair >> 16 * i)});
}

// Lane 4g + t holds of A rows g and g + 8, columns 2t, 2t + 1 and 8 on; of B rows 2t, 2t + 1 and
// 8 on, column g; of C rows g and g + 8, columns 2t, 2t + 1.
template <class T> void multiply(void *const args[32]) {
    float a[16][16], b[8][16];
    for (int i = 0; i < 32; i++) {
        const mma_arg *p = (const mma_arg *)args[i];
        int g = i / 4, t = i % 4 * 2;
        for (int h = 0; h < 2; h++) {
            a[g][t + h] = half_of<T>(p->a[0], h);
            a[g + 8][t + h] = half_of<T>(p->a[1], h);
            a[g][t + 8 + h] = half_of<T>(p->a[2], h);
            a[g + 8][t + 8 + h] = half_of<T>(p->a[3], h);
            b[g][t + h] = half_of<T>(p->b[0], h);
            b[g][t + 8 + h] = half_of<T>(p->b[1], h);
        }
    }
    for (int i = 0; i < 32; i++) {
        float *c = ((const mma_arg *)args[i])->c;
        for (int k = 0; k < 4; k++) {
            const float *row = a[i / 4 + k / 2 * 8], *col = b[i % 4 * 2 + k % 2];
            float s[4] = {c[k], 0, 0, 0};
            for (int j = 0; j < 16; j += 4)
                for (int u = 0; u < 4; u++)
                    s[u] += row[j + u] * col[j + u];
            c[k] = (s[0] + s[1]) + (s[2] + s[3]);
        }
    }
}
template void multiply<bf16>(void *const args[32]);
template void multiply<f16>(void *const args[32]);

} // namespace simt
