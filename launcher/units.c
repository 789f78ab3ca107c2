#include "launcher/units.h"

#include <stdio.h>

const char *tsr_bytes_text(char out[static 32], double n_bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;
    while (n_bytes >= 1024.0 && u < 5) {
        n_bytes /= 1024.0;
        u++;
    }
    snprintf(out, 32, u == 0 ? "%.0f %s" : "%.2f %s", n_bytes, units[u]);
    return out;
}
