// Input: a config.json. What is read must be written as a text that is read as the same model.
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/tensor.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct tsr_model m, again;
    struct tsr_tensor_table tt;
    char *text = malloc(size + 1);
    TSR_ASSERT(text);
    memcpy(text, data, size);
    text[size] = 0;
    if (tsr_model_parse(&m, text, "input") == 0) {
        TSR_ASSERT(tsr_tensor_table_build(&tt, &m) == 0);
        tsr_tensor_table_free(&tt);
        char *first = tsr_model_to_json(&m);
        TSR_ASSERT(first && tsr_model_parse(&again, first, "written") == 0);
        char *second = tsr_model_to_json(&again);
        TSR_ASSERT(second && strcmp(first, second) == 0);
        free(first);
        free(second);
        tsr_model_free(&again);
        tsr_model_free(&m);
    }
    free(text);
    return 0;
}
