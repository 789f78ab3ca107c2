#include "dist/memory.h"

#include "core/error.h"

const char *const tsr_memory_names[TSR_N_MEMORY] = {
#define X(name, text) #name,
    TSR_MEMORY_MAP(X)
#undef X
};

const char *const tsr_memory_texts[TSR_N_MEMORY] = {
#define X(name, text) text,
    TSR_MEMORY_MAP(X)
#undef X
};

static size_t bucket_bytes(const struct tsr_net *net) {
    return 2 * (size_t)net->mesh.dp * net->bucket_elems * sizeof **net->bucket;
}

static size_t rope_bytes(const struct tsr_net *net) {
    return (size_t)(net->rope_positions * net->m->head_dim) * sizeof *net->rope;
}

static size_t data_bytes(const struct tsr_trainer *t) {
    int T = (int)t->run->data.seq_len, mb = (int)t->run->train.micro_batch;
    size_t n = tsr_batch_bytes(&t->net, mb, T) + sizeof *t->batches;
    n *= (size_t)t->n_micro;
    n += (size_t)(T + 1) * sizeof *t->tokens;
    n += (size_t)t->net.n_sums * sizeof *t->net.host_sums;
    n += t->doc_start ? (size_t)mb * (size_t)(T + 1) : 0;
    return n;
}

// What the device's own count must say.
static size_t slabs_of(const struct tsr_trainer *t) {
    const struct tsr_net *net = &t->net;
    return net->weights_bytes + net->gradients_bytes + net->accumulators_bytes +
           net->moments_bytes + net->masters_bytes + t->state.slab_bytes + t->executor.slab_bytes +
           bucket_bytes(net) + rope_bytes(net) + (size_t)t->n_micro * t->batches[0].slab_bytes +
           net->comm->device_bytes;
}

void tsr_memory_of(const struct tsr_trainer *t, struct tsr_memory *out) {
    const struct tsr_net *net = &t->net;
    const struct tsr_model_state *s = &t->state;
    size_t blocks, head;
    tsr_model_state_parts(s, &t->batches[0], &blocks, &head);
    *out = (struct tsr_memory){
        .weights = net->weights_bytes,
        .gradients = net->gradients_bytes,
        .accumulators = net->accumulators_bytes,
        .moments = net->moments_bytes,
        .masters = net->masters_bytes,
        .activations = s->slab_bytes - blocks - head,
        .scratch = blocks + rope_bytes(net),
        .logits = head,
        .communication = bucket_bytes(net) + t->executor.slab_bytes + net->comm->buffer_bytes +
                         net->comm->device_bytes,
        .data = data_bytes(t),
        .slabs = slabs_of(t),
    };
}

size_t tsr_memory_get(const struct tsr_memory *m, int purpose) {
    const size_t all[] = {
#define X(name, text) m->name,
        TSR_MEMORY_MAP(X)
#undef X
    };
    TSR_ASSERT(purpose >= 0 && purpose < TSR_N_MEMORY);
    return all[purpose];
}

size_t tsr_memory_total(const struct tsr_memory *m) {
    size_t sum = 0;
    for (int i = 0; i < TSR_N_MEMORY; i++)
        sum += tsr_memory_get(m, i);
    return sum;
}
