// The gradients of a step as the ranks of a layout wrote them (dist/grad_dump.h), and how those of
// two layouts differ.
#ifndef TSR_LAUNCHER_GRADIENTS_H
#define TSR_LAUNCHER_GRADIENTS_H

#include "core/safetensors.h"
#include "core/tensor.h"

struct tsr_gradients {
    int n_ranks;
    struct tsr_st_file *files; // (n_ranks)
    double loss, grad_norm;
};

// Opens one step's files. TSR_EDATA, TSR_EMODEL or TSR_EIO say which one is wrong.
int tsr_gradients_open(struct tsr_gradients *g, const char *dir, int64_t step, int n_ranks);
void tsr_gradients_close(struct tsr_gradients *g);

// The first element of a tensor that isn't the same: of two layouts, or of two ranks of one that
// hold copies of it.
struct tsr_first {
    int64_t row, col;
    float a, b;
};

struct tsr_difference {
    double loss[2], grad_norm[2]; // of the two layouts
    int n_tensors, n_different;   // gradients compared, and those of them that differ in some bit
    char name[112];               // of the first that differs in the order of the tensor table
    int layer;                    // its layer; -1: outside the blocks
    struct tsr_first first;       // in it
    int within;                   // 1, 2: the copies that ranks of that layout hold differ; else 0
    char last[112];               // the last that differs: backward came by it first
    double distance;              // the largest ||a - b|| / ||b|| of a tensor, b at least 1e-6 of
                                  // the whole gradient's norm
    char far[112];                // whose
};

// Compares one step of two layouts. TSR_EDATA, TSR_ENOMEM.
int tsr_gradients_compare(struct tsr_difference *out, const struct tsr_gradients *a,
                          const struct tsr_gradients *b, const struct tsr_tensor_table *tt);

// Whether every bit of the step is the same.
bool tsr_gradients_equal(const struct tsr_difference *d);

#endif
