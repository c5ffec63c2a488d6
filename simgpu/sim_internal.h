/* What this process knows about the shared state; only for sim_*.c. */
#pragma once

#include "sim_state.h"

struct hm_local {
    struct hm_state *state;
    int fd;   /* its open file description owns this process's OFD lock */
    int slot; /* -1: none */
};

extern struct hm_local hm_local;
