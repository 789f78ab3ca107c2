// A rank of `tessera layout-check`: some training steps, with the gradients of each written down.
#include <stdlib.h>
#include "core/error.h"
#include "dist/grad_dump.h"
#include "dist/leaves.h"
#include "dist/store.h"
#include "launcher/layout_check.h"
#include "launcher/random_tokens.h"
#include "launcher/supervise_spawn.h"

static int sequence_of(void *dataset, uint64_t g, int32_t *tokens, uint8_t *doc_start) {
    return tsr_dataset_sequence(dataset, g, tokens, doc_start);
}

static int train(struct tsr_job *j, struct tsr_trainer *t, const char *dir, int64_t steps) {
    bool random = j->run.data.train.n == 0;
    TSR_TRY(tsr_job_device(j));
    if (!random)
        TSR_TRY(tsr_job_load_data(j));
    TSR_TRY(tsr_trainer_open(t, &j->run, &j->model, &j->ctx, &j->comm, &j->mesh,
                             random ? tsr_random_sequence : sequence_of,
                             random ? (void *)j : (void *)j->train));
    int rc = j->run.model.from ? tsr_store_load_weights(&t->net, j->run.model.from)
                               : tsr_net_init(&t->net);
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, rc));
    TSR_TRY(tsr_trainer_round(t));
    for (int64_t i = 0; i < steps; i++) {
        struct tsr_step_result r;
        TSR_TRY(tsr_trainer_step(t, &r));
        TSR_TRY(tsr_agree(&j->ctx, &j->comm, tsr_grad_dump(t, &r, dir)));
    }
    return 0;
}

int tsr_check_rank(int argc, char **argv) {
    struct tsr_job j;
    struct tsr_trainer t = {0};
    TSR_ASSERT(argc >= 3); // who starts it is this program
    tsr_die_with_parent();
    int rc = tsr_job_open(&j, "tessera layout-check");
    if (rc == 0)
        rc = tsr_job_load_run(&j, argv[2], (const char *const *)argv + 3, argc - 3);
    if (rc == 0)
        rc = train(&j, &t, argv[0], strtoll(argv[1], NULL, 10));
    tsr_job_settle(&j, rc);
    tsr_trainer_close(&t);
    return tsr_job_close(&j, rc);
}
