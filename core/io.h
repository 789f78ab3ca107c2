// Files: whole reads and writes that survive EINTR and short counts, durable renames, paths.
// Every failure is TSR_EIO (TSR_ENOSPC for a full disk or quota) with the path and errno's text,
// unless said otherwise.
#ifndef TSR_CORE_IO_H
#define TSR_CORE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TSR_PATH_MAX = 4096 };

// Records "PATH: DOING: <text of errno value err>"; returns TSR_ENOSPC or TSR_EIO.
int tsr_fail_errno(int err, const char *doing, const char *path);

// Joins with one '/', truncation is TSR_EUSAGE. `b` absolute replaces `a`.
int tsr_path_join(char out[static TSR_PATH_MAX], const char *a, const char *b);
// The folder of a file's path ("." when it has none).
int tsr_path_dir(char out[static TSR_PATH_MAX], const char *path);
const char *tsr_path_base(const char *path);

bool tsr_path_exists(const char *path);
bool tsr_path_is_dir(const char *path);
int tsr_mkdir_p(const char *path);
// Removes a folder and all that is in it; a missing one is fine.
int tsr_remove_tree(const char *path);

// Reads a whole file of at most `max_bytes` into a fresh buffer with a NUL after its end (not
// counted). A missing or unreadable file is `missing_code` (TSR_EUSAGE, TSR_EMODEL, TSR_EDATA…).
int tsr_read_file(const char *path, size_t max_bytes, int missing_code, char **out, size_t *n_out);
// The same for files of models and checkpoints: a pipe, which nobody may ever write to, a device or
// a folder in the place of one is `missing_code`, too. Links are followed.
int tsr_read_regular_file(const char *path, size_t max_bytes, int missing_code, char **out,
                          size_t *n_out);

// Writes the whole buffer, or fails.
int tsr_write_all(int fd, const void *buf, size_t n_bytes, const char *path);
int tsr_pwrite_all(int fd, const void *buf, size_t n_bytes, uint64_t offset, const char *path);
int tsr_pread_all(int fd, void *buf, size_t n_bytes, uint64_t offset, const char *path);

// Memory for large transfers past the page cache, on huge pages where the system has them: a disk
// takes one long piece in fewer requests than many scattered pages, which is up to three times as
// fast. NULL: out of memory. Freed by free().
void *tsr_io_memory(size_t n_bytes);

// Writes a temporary file beside `path`, fsyncs, renames over `path`, fsyncs the folder.
int tsr_write_file_durable(const char *path, const void *buf, size_t n_bytes);
int tsr_fsync_path(const char *path); // a file or a folder

// A growable byte string. `data` always has a NUL after `len` once something was appended.
struct tsr_buf {
    char *data;
    size_t len, cap;
};
int tsr_buf_append(struct tsr_buf *b, const void *p, size_t n_bytes); // 0 or TSR_ENOMEM
__attribute__((format(printf, 2, 3))) int tsr_buf_printf(struct tsr_buf *b, const char *fmt, ...);
void tsr_buf_free(struct tsr_buf *b);

#endif
