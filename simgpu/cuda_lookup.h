/* What cuGetProcAddress knows: generated from cudaTypedefs.h. */
#pragma once

#include "cuda_driver.h"
#include "sim_error.h"

struct hm_lookup {
    const char *name; /* without version */
    int since;        /* CUDA version it came with */
    bool per_thread;  /* the _ptsz or _ptds form */
    void *function;
};

extern const struct hm_lookup hm_lookups[];
extern const size_t hm_lookup_count;
