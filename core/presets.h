// The model shapes of configs/models/, compiled in (cmake/embed_presets.cmake).
#ifndef TSR_CORE_PRESETS_H
#define TSR_CORE_PRESETS_H

struct tsr_preset {
    const char *name; // the file's name without .json
    const char *json;
};

extern const struct tsr_preset tsr_presets[]; // in order of names
extern const int tsr_n_presets;

#endif
