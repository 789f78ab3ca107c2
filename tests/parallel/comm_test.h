// Shared by test_comm.c and the other comm_*.c, which are one program.
#ifndef TSR_COMM_TEST_H
#define TSR_COMM_TEST_H

#include "dist/comm_mpi.h"

struct fixture {
    struct tsr_comm c;
    struct tsr_ctx ctx;
    struct tsr_progress progress;
    enum { HOST, STAGED, DEVICE } transport;
    bool shm;                // path that groups on one host use
    char host[64][256];      // of each rank
    struct tsr_group world;  // all ranks, opened for this path
    struct tsr_group turned; // all ranks, last one first
    struct tsr_group pair;   // neighbours {0,1} {2,3}; a lone last rank is alone
    struct tsr_group stride; // ranks of one parity
};

// Ends the whole job with code 1 after printing both values.
#define CHECK_EQ(f, found, expected)                                                               \
    check_eq(f, (long long)(found), (long long)(expected), #found, __FILE__, __LINE__)
void check_eq(struct fixture *f, long long found, long long expected, const char *what,
              const char *file, int line);
// A call must return 0.
#define CHECK_OK(f, call) check_eq(f, (call), 0, #call, __FILE__, __LINE__)
void check_bits(struct fixture *f, const float *found, const float *expected, size_t n,
                const char *what);

// Element i of what group rank r brings to call `call`: sums of these depend on their order.
float input(int call, int r, size_t i);
// Their sum over n ranks, by the tree.
float tree_of(int call, int n, size_t i);

// The device and transport that argument of the program names: "host"; "staged"; the path of a
// device's object; "staged:" and that path, its buffers then go through the host's memory.
void device_open(struct fixture *f, const char *transport);
void device_close(struct fixture *f);
void device_group(struct fixture *f, struct tsr_group *g); // several rounds with little data
// A copy on the device; back again and freed, after waiting for all that was asked for.
void *up(struct fixture *f, const void *host, size_t n_bytes);
void down(struct fixture *f, void *host, void *dev, size_t n_bytes);

void test_send_recv(struct fixture *f, struct tsr_group *g);
void test_split_messages(struct fixture *f, struct tsr_group *g);
void test_progress_in_barrier(struct fixture *f);
void test_timeouts(struct fixture *f);
void test_zero(struct fixture *f);

#endif
