/* Address space in whole blocks: host memory that is mapped without being reserved. */
#pragma once

#include "cuda_driver.h"

/* Readable and writable or not; 0 when the host has none. `hint` may be 0. */
uint64_t hm_space_take(uint64_t hint, uint64_t bytes, bool accessible);
void hm_space_give(uint64_t address, uint64_t bytes);

/* How another process finds the data at an address: a descriptor of this one, by /proc. */
struct hm_space_share {
    int32_t pid;
    int32_t fd;
    uint64_t bytes;
};

/* Moves what hm_space_take() made to memory that others can map; once, later calls find it. */
struct hm_space_share hm_space_share(uint64_t address, uint64_t bytes);
/* The same data at an address of this process; memory of its own where they can't be reached (another
 * PID namespace, another user). 0 when the host has none. */
uint64_t hm_space_join(const struct hm_space_share *share);
