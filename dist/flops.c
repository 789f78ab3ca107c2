#include "dist/train.h"

// Chowdhery et al. 2022 (PaLM), appendix B, with half of the attention square for the causal mask.
const char tsr_flops_formula[] =
    "flops per token = 6 * (parameters of matrix products, with lm_head) + 6 * layers * heads * "
    "head_dim * seq_len; mfu = flops per token * tokens_per_s / (sum of ranks' measured fp32 FMA "
    "peaks)";

double tsr_flops_per_token(const struct tsr_model *m, int64_t seq_len) {
    double C = (double)m->hidden, q = (double)(m->n_heads * m->head_dim),
           kv = (double)(m->n_kv_heads * m->head_dim), F = (double)m->ffn;
    double per_layer = C * (2.0 * q + 2.0 * kv) + C * F * (m->gated ? 3.0 : 2.0);
    double products = (double)m->n_layers * per_layer + C * (double)m->vocab;
    return 6.0 * products + 6.0 * (double)m->n_layers * q * (double)seq_len;
}
