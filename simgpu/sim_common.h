/* Small things every file of the simulator uses. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HM_EXPORT __attribute__((visibility("default")))
#define HM_CLEANUP(function) __attribute__((cleanup(function)))
#define HM_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define HM_MIB (1ull << 20)
#define HM_BLOCK_BYTES (2 * HM_MIB)

static inline uint64_t
hm_round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline uint64_t
hm_blocks(uint64_t bytes)
{
    return (bytes + HM_BLOCK_BYTES - 1) / HM_BLOCK_BYTES;
}

/* Zeroed memory. A host without memory ends the process: nothing is being simulated any more. */
void *hm_allocate(size_t bytes);

/* A descriptor of a new file that lies in memory only and is closed on exec; -1 if there is none to be had. */
int hm_memory_file(const char *name);

/* The number in environment variable `name`, or `fallback` when it is unset or not a number. */
uint64_t hm_env_number(const char *name, uint64_t fallback);
