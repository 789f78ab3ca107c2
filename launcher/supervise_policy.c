#include "launcher/supervise_policy.h"

#include <string.h>
#include "core/error.h"

enum { FAILURES_OF_A_LAYOUT = 2 };

int tsr_policy_init(struct tsr_policy *p, const struct tsr_run *r, int64_t committed) {
    const struct tsr_layouts *elastic = &r->parallel.elastic;
    *p = (struct tsr_policy){.max_restarts = r->supervise.restarts, .committed = committed};
    if (elastic->n > TSR_MAX_LAYOUTS - 1)
        return tsr_fail(TSR_ECONFIG, "parallel.elastic: expected at most %d layouts, found %d",
                        TSR_MAX_LAYOUTS - 1, elastic->n);
    // Started alone, a run without parallel.dp has one replica.
    p->layouts[p->n_layouts++] = (struct tsr_layout3){r->parallel.tp, r->parallel.pp,
                                                      r->parallel.dp > 0 ? r->parallel.dp : 1};
    for (int i = 0; i < elastic->n; i++)
        p->layouts[p->n_layouts++] = elastic->items[i];
    return 0;
}

int64_t tsr_layout_ranks(const struct tsr_layout3 *l) {
    return l->tp * l->pp * l->dp;
}

static void note_progress(struct tsr_policy *p, int64_t committed) {
    if (committed <= p->committed)
        return;
    p->committed = committed;
    p->restarts = p->ends_70 = 0;
    p->failures = 0;
    p->given_up = 0;
    p->delay_s = 0.0;
}

static struct tsr_verdict leave(int exit_code) {
    return (struct tsr_verdict){.exit_code = exit_code};
}

struct tsr_verdict tsr_policy_after(struct tsr_policy *p, const struct tsr_end *e) {
    note_progress(p, e->committed);
    p->began |= e->began;
    int64_t most =
        p->began || p->max_restarts < TSR_VAIN_RESTARTS ? p->max_restarts : TSR_VAIN_RESTARTS;
    if (e->code == 0 || e->code == 2 || e->code == 3 || e->code == TSR_EXIT_INTERRUPTED)
        return leave(e->code);
    bool bug = e->code == TSR_EXIT_BUG;
    p->ends_70 += bug;
    if (bug && (p->ends_70 > 1 || e->stopping))
        return leave(TSR_EXIT_BUG);
    if (e->stopping || p->restarts >= most)
        return leave(bug ? TSR_EXIT_BUG : TSR_EXIT_PEER);
    p->restarts++;
    p->failures++;
    if (p->failures >= FAILURES_OF_A_LAYOUT)
        p->given_up |= UINT64_C(1) << p->layout;
    p->delay_s = p->delay_s == 0.0 ? TSR_FIRST_DELAY_S : 2.0 * p->delay_s;
    if (p->delay_s > TSR_MAX_DELAY_S)
        p->delay_s = TSR_MAX_DELAY_S;
    return (struct tsr_verdict){.restart = true, .delay_s = p->delay_s};
}

static int first_that_fits(const struct tsr_policy *p, int64_t n_ranks) {
    for (int i = 0; i < p->n_layouts; i++)
        if (!(p->given_up >> i & 1) && tsr_layout_ranks(&p->layouts[i]) <= n_ranks)
            return i;
    return -1;
}

int tsr_policy_choose(struct tsr_policy *p, int64_t n_ranks) {
    int i = first_that_fits(p, n_ranks);
    if (i < 0) {
        p->given_up = 0;
        i = first_that_fits(p, n_ranks);
    }
    if (i < 0)
        return -1;
    if (i != p->layout)
        p->failures = 0;
    p->layout = i;
    return i;
}
