// Runs each file named on the command line through a fuzz target once: what a corpus found once
// stays found where there is no fuzzer. Exit code 1 when a file can't be read.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path) {
    FILE *f = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t size = 0, cap = 0, n = 1;
    while (f && n > 0) {
        if (size == cap) {
            uint8_t *more = realloc(data, cap = cap ? 2 * cap : 4096);
            if (!more)
                abort();
            data = more;
        }
        n = fread(data + size, 1, cap - size, f);
        size += n;
    }
    if (!f || ferror(f)) {
        perror(path);
        exit(1);
    }
    fclose(f);
    int rc = LLVMFuzzerTestOneInput(data, size);
    free(data);
    return rc;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    printf("%d inputs\n", argc - 1);
    return argc > 1 ? 0 : 1;
}
