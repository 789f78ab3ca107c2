#include "core/error.h"
#include "core/model.h"

#define SAME_INT(field)                                                                            \
    if (a->field != b->field)                                                                      \
        return tsr_fail(TSR_ECONFIG,                                                               \
                        "%s holds another model: its " #field " is %lld, this run's "              \
                        "is %lld",                                                                 \
                        where, (long long)b->field, (long long)a->field);
#define SAME_REAL(field)                                                                           \
    if (a->field != b->field)                                                                      \
        return tsr_fail(TSR_ECONFIG,                                                               \
                        "%s holds another model: its " #field " is %.9g, this run's is %.9g",      \
                        where, b->field, a->field);

int tsr_model_same(const struct tsr_model *a, const struct tsr_model *b, const char *where) {
    SAME_INT(arch)
    SAME_INT(n_layers)
    SAME_INT(hidden)
    SAME_INT(n_heads)
    SAME_INT(n_kv_heads)
    SAME_INT(head_dim)
    SAME_INT(ffn)
    SAME_INT(vocab)
    SAME_INT(max_positions)
    SAME_INT(tied)
    SAME_INT(attn_bias)
    SAME_INT(mlp_bias)
    SAME_INT(scores_unscaled)
    SAME_INT(scores_by_layer)
    SAME_INT(act)
    SAME_INT(position)
    SAME_INT(rope_scaling)
    SAME_REAL(norm_eps)
    SAME_REAL(rope_theta)
    SAME_REAL(rope_factor)
    SAME_REAL(rope_low_freq)
    SAME_REAL(rope_high_freq)
    SAME_REAL(rope_original_positions)
    return 0;
}
