#include "core/presets.h"

#include <stddef.h>
#include <string.h>
#include "core/model.h"

const char *tsr_preset_json(const char *name) {
    for (int i = 0; i < tsr_n_presets; i++)
        if (strcmp(tsr_presets[i].name, name) == 0)
            return tsr_presets[i].json;
    return NULL;
}

void tsr_preset_each(void (*fn)(const char *name, void *arg), void *arg) {
    for (int i = 0; i < tsr_n_presets; i++)
        fn(tsr_presets[i].name, arg);
}
