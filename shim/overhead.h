/*
 * What the driver takes on top of allocations: contexts, modules, local memory. Measured through NVML as the footprint
 * of each process less what its allocations hold; contexts are predicted and reserved before one is made (context.h).
 */
#pragma once
#include "tenant.h"

/* Read the footprints from NVML into the ledger, for all processes of the tenant that NVML shows us. 56 us. */
void hm_overhead_refresh(int device);

/* The same after a context was made. If it is the first of this process, which has allocated nothing yet, then the overhead
   is the context: note its size for the tenant. False: calls were in flight, and our own overhead is not exact. */
bool hm_overhead_measure_context(int device);

/* A module or function is about to be loaded that may take bytes: false if it would go over the cap. */
bool hm_overhead_load_fits(int device, uint64_t bytes);

/* Initialize NVML. False, and logged: it does not answer. */
bool hm_overhead_nvml_ready(void);

/* Ask NVML about each device once: the first look takes 20 ms. */
void hm_overhead_warm_up(void);

/* Around a fork: while NVML is loaded by one of our threads, the child of another's fork could load nothing any more. It
   waits for that, but not for ever: a library's constructor may fork, which the loader would wait for. */
void hm_overhead_before_fork(void);
void hm_overhead_after_fork_parent(void);

/* In a fork child: nobody measures. */
void hm_overhead_after_fork_child(void);
