/*
 * What the driver takes on top of allocations: contexts, modules, local memory. Measured through NVML as the footprint
 * of each process less what its allocations hold; predicted and reserved before a context is made.
 */
#pragma once
#include "tenant.h"

/* Read the footprints from NVML into the ledger, for all processes of the tenant that NVML shows us. 56 us. */
void hm_overhead_refresh(int device);

/* Before a context is made: reserve its predicted size. False: does not fit under the cap (logged). */
bool hm_overhead_context_begin(int device);
/* After: settle what was reserved, from NVML as soon as it is ready. made is false when the driver refused. */
void hm_overhead_context_end(int device, bool made);
/* A context of the device is gone. */
void hm_overhead_context_gone(int device);

/* A module or function is about to be loaded that may take bytes: false if it would go over the cap. */
bool hm_overhead_load_fits(int device, uint64_t bytes);

/* An image was looked at: charge what the device services that it may call will take. False: does not fit. */
bool hm_overhead_services_fit(void);

/* The helper thread of this process: initializes NVML, then trims pools when others need memory. Started once. */
void hm_helper_start(void);
void hm_helper_after_fork_child(void);
