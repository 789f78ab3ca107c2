// One instruction set's operations as the table that the layers above call.
#include "kernels/cpu/isa.h"

#define TSR_TEXT_(x) #x
#define TSR_TEXT(x)  TSR_TEXT_(x)

const struct tsr_ops TSR_FN(tsr_ops) = {.name = TSR_TEXT(TSR_ISA),
                                        .close = tsr_cpu_close,
                                        .alloc = tsr_cpu_alloc,
                                        .free = tsr_cpu_free,
                                        .zero = tsr_cpu_zero,
                                        .to_device = tsr_cpu_move,
                                        .to_host = tsr_cpu_move,
                                        .copy = tsr_cpu_copy,
                                        .copy_2d = tsr_cpu_copy_2d,
                                        .convert = tsr_cpu_convert,
                                        .sync = tsr_cpu_sync,
                                        .pin = tsr_cpu_pin,
                                        .unpin = tsr_cpu_unpin,
                                        .describe = tsr_cpu_describe,
                                        .allocated = tsr_cpu_allocated,
                                        .scratch = tsr_cpu_scratch,
                                        .measure_peak = tsr_cpu_measure_peak,
                                        .sample = tsr_cpu_sample,
#define X(op) .op = TSR_FN(tsr_##op),
                                        TSR_ISA_OPS(X)
#undef X
};
