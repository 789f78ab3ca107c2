// Large stretches of files into memory in the background: past the page cache where the file system
// can, several at a time.
#ifndef TSR_CORE_FETCH_H
#define TSR_CORE_FETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TSR_FETCH_PAGE = 4096 }; // what offsets and memory of a stretch are multiples of

// One file, two ways of reading it.
struct tsr_fetch_file {
    const char *path;
    int fd;
    int direct; // the same file with O_DIRECT, or -1
};

// Opens a file for both ways; `buffered`, or a file system without O_DIRECT: one. TSR_EIO.
int tsr_fetch_file_open(struct tsr_fetch_file *f, const char *path, bool buffered);
void tsr_fetch_file_close(struct tsr_fetch_file *f);

// Filled in by whoever wants it read; `to` has room for n_bytes, rounded up to the page. Both it
// and the file must stay until tsr_fetch_wait has returned for it.
struct tsr_stretch {
    const struct tsr_fetch_file *file;
    uint64_t offset; // a multiple of the page
    size_t n_bytes;  // that the file has from there on: any number
    char *to;        // on a page's border
    // the fetcher's own
    bool done;
    int rc;
    struct tsr_stretch *next;
};

struct tsr_fetcher;

// Threads that read, so that the disk has the next stretch when one is done. `staged`: what is to
// be filled is not on huge pages; reading into some that are (tsr_io_memory) and copying is faster.
// TSR_ENOMEM.
int tsr_fetch_open(struct tsr_fetcher **out, bool staged);
// Stretches that nobody has begun are dropped. NULL is fine.
void tsr_fetch_close(struct tsr_fetcher *r);
// Stretches are begun in the order in which they are given.
void tsr_fetch_submit(struct tsr_fetcher *r, struct tsr_stretch *s);
// Waits until it has been read. TSR_EIO with the path, also when the file is shorter.
int tsr_fetch_wait(struct tsr_fetcher *r, struct tsr_stretch *s);

#endif
