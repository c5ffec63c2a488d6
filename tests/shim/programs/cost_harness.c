/* cost.c under ctypes. */
#include "quick.h"

/* Predicted time of a launch of this work, ns; *kind: where it is kept. */
__attribute__((visibility("default"))) uint64_t
harness_predict(uint64_t work, uint16_t *kind, bool *known)
{
    struct hm_pass pass = {.work = hm_mix(work)};

    hm_cost_of(&pass);
    *kind = pass.kind;
    *known = pass.known;
    return pass.cost_ns;
}

/* Launches of these kinds, in this order, had a mark behind the last. */
__attribute__((visibility("default"))) void
harness_learn(const uint16_t *kinds, uint32_t launches, uint64_t predicted_ns, uint64_t elapsed_ns,
              bool queued)
{
    struct hm_mark mark = {.launches = launches, .cost_ns = predicted_ns};

    for (uint32_t i = 0; i < launches; i++)
        mark.kind[i % HM_KINDS] = kinds[i];
    hm_cost_learn(&mark, elapsed_ns, queued);
}
