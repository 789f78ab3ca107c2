#include "core/model_private.h"

#include <math.h>
#include <stdlib.h>
#include "core/error.h"
#include "core/io.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };

void tsr_model_free(struct tsr_model *m) {
    free(m->config_json);
    *m = (struct tsr_model){0};
}

int tsr_model_load(struct tsr_model *m, const char *dir) {
    char path[TSR_PATH_MAX];
    char *text;
    TSR_TRY(tsr_path_join(path, dir, "config.json"));
    if (!tsr_path_is_dir(dir))
        return tsr_fail(TSR_EMODEL, "%s: expected a model folder with a config.json, found %s", dir,
                        tsr_path_exists(dir) ? "a file" : "nothing");
    TSR_TRY(tsr_read_regular_file(path, MAX_CONFIG_BYTES, TSR_EMODEL, &text, NULL));
    int rc = tsr_model_parse(m, text, path);
    free(text);
    if (rc < 0)
        return rc;
    rc = tsr_path_join(path, dir, "generation_config.json");
    if (rc == 0 && tsr_path_exists(path)) {
        rc = tsr_read_regular_file(path, MAX_CONFIG_BYTES, TSR_EMODEL, &text, NULL);
        if (rc == 0) {
            rc = tsr_model_parse_generation(m, text, path);
            free(text);
        }
    }
    if (rc < 0)
        tsr_model_free(m);
    return rc;
}

int64_t tsr_model_n_params(const struct tsr_model *m) {
    int64_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    int64_t norm = m->rms_norm ? m->hidden : 2 * m->hidden;
    int64_t n_first = m->gated ? 2 : 1; // products before the activation
    int64_t block = 2 * norm + 2 * m->hidden * (q + kv) + (n_first + 1) * m->hidden * m->ffn;
    if (m->attn_bias)
        block += q + 2 * kv + m->hidden;
    if (m->mlp_bias)
        block += n_first * m->ffn + m->hidden;
    int64_t n = m->n_layers * block + m->vocab * m->hidden * (m->tied ? 1 : 2);
    if (m->position != TSR_POS_ROTARY)
        n += m->max_positions * m->hidden;
    return n + (m->post_norm ? 0 : norm);
}

// Wavelengths shorter than original / high keep their frequency, those longer than original / low
// are slowed down by `factor`, and those between are blended linearly in original / wavelength.
static double scale_llama3(const struct tsr_model *m, double freq) {
    double wavelength = 2.0 * M_PI / freq;
    double turns = m->rope_original_positions / wavelength;
    if (turns > m->rope_high_freq)
        return freq;
    if (turns < m->rope_low_freq)
        return freq / m->rope_factor;
    double keep = (turns - m->rope_low_freq) / (m->rope_high_freq - m->rope_low_freq);
    return (1.0 - keep) * freq / m->rope_factor + keep * freq;
}

void tsr_rope_frequencies(const struct tsr_model *m, double *out) {
    for (int64_t d = 0; d < m->head_dim / 2; d++) {
        double freq = pow(m->rope_theta, -2.0 * (double)d / (double)m->head_dim);
        if (m->rope_scaling == TSR_ROPE_LINEAR)
            freq /= m->rope_factor;
        else if (m->rope_scaling == TSR_ROPE_LLAMA3)
            freq = scale_llama3(m, freq);
        out[d] = freq;
    }
}
