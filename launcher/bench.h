// The parts of `tessera bench`. Each returns the process exit code.
#ifndef TSR_LAUNCHER_BENCH_H
#define TSR_LAUNCHER_BENCH_H

int tsr_bench_train(int argc, char **argv);
int tsr_bench_ops(int argc, char **argv);
int tsr_bench_comm(int argc, char **argv);

#endif
