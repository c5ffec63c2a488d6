#include "sim_stub.h"

#include <string.h>

void
hm_stub_count(size_t index)
{
    struct hm_state *state = hm_state();

    if (state != NULL)
        atomic_fetch_add(&state->stub_calls[hm_stub_table.library][index], 1);
}

uint64_t
hm_sim_stub_calls(const char *name)
{
    const struct hm_state *state = hm_state();

    for (size_t i = 0; state != NULL && i < hm_stub_table.count; i++) {
        if (strcmp(hm_stub_table.names[i], name) == 0)
            return atomic_load(&state->stub_calls[hm_stub_table.library][i]);
    }
    return 0;
}
