// One instruction set's operations as the table that the layers above call.
#include "kernels/cpu/isa.h"

#define TSR_TEXT_(x) #x
#define TSR_TEXT(x)  TSR_TEXT_(x)

const struct tsr_ops TSR_FN(tsr_ops) = {.name = TSR_TEXT(TSR_ISA),
                                        .alloc = tsr_cpu_alloc,
                                        .free = tsr_cpu_free,
                                        .zero = tsr_cpu_zero,
                                        .to_device = tsr_cpu_copy,
                                        .to_host = tsr_cpu_copy,
                                        .copy = tsr_cpu_copy,
                                        .copy_2d = tsr_cpu_copy_2d,
                                        .sync = tsr_cpu_sync,
#define X(op) .op = TSR_FN(tsr_##op),
                                        TSR_ISA_OPS(X)
#undef X
};
