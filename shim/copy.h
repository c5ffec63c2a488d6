/* Copies that are never held back: over the bus, or in a direction that we do not know. */
#pragma once
#include "quick.h"

/* Count them if the driver took them. Returns result. */
static inline CUresult
hm_copied(uint64_t bytes, CUresult result)
{
    if (result == CUDA_SUCCESS)
        hm_gate_bus(bytes);
    return result;
}
