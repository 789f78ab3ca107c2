#include "core/run_stamp.h"

#include <string.h>
#include "core/error.h"
#include "core/run_private.h"

int tsr_run_read_stamp(struct tsr_run *r, const char *yaml, const char *where) {
    struct tsr_reader rd;
    *r = (struct tsr_run){0};
    int rc = tsr_run_reader_open(&rd, r, where, "/");
    if (rc == 0) {
        tsr_reader_text(&rd, yaml, strlen(yaml));
        rc = tsr_reader_finish(&rd);
    }
    if (rc < 0)
        tsr_run_free(r);
    return rc;
}

int tsr_run_each_difference(const struct tsr_run *a, const struct tsr_run *b,
                            tsr_run_difference_fn fn, void *arg) {
    struct tsr_buf x = {0}, y = {0};
    int rc = 0;
    for (int i = 0; i < TSR_N_FIELDS && rc == 0; i++) {
        x.len = y.len = 0;
        rc = tsr_field_print(a, &tsr_fields[i], &x);
        if (rc == 0)
            rc = tsr_field_print(b, &tsr_fields[i], &y);
        if (rc == 0 && strcmp(x.data, y.data) != 0)
            rc = fn(arg, tsr_fields[i].path, x.data, y.data);
    }
    tsr_buf_free(&x);
    tsr_buf_free(&y);
    return rc;
}
