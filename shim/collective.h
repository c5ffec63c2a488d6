/*
 * collective.c: kernels that wait on the card for kernels of other processes or devices, as NCCL's do. They are known by
 * name when the program looks them up.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* A function or kernel was looked up by this name. */
void hm_collective_named(const void *function, const char *name);
/* `function` is the kernel's, in some context. */
void hm_collective_same(const void *function, const void *kernel);
/* This process is a rank, or will be: it looked one up. */
bool hm_collective_any(void);
bool hm_collective_find(const void *function);

static inline bool
hm_collective_is(const void *function)
{
    extern uint32_t hm_collectives __attribute__((visibility("hidden"))); /* known */

    return __builtin_expect(__atomic_load_n(&hm_collectives, __ATOMIC_ACQUIRE) != 0, 0) &&
           hm_collective_find(function);
}

/* One was captured: from then on every graph may hold one. */
void hm_collective_capture(void);
bool hm_collective_captured(void);
