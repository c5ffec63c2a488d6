/*
 * What contexts take of the card, with the device services that are loaded into each: predicted, and reserved before one
 * is made.
 */
#pragma once
#include "tenant.h"

/* Before a context is made: reserve its predicted size. False: does not fit under the cap (logged). */
bool hm_context_begin(int device);
/* After: settle what was reserved, from NVML as soon as it is ready. made is false when the driver refused. */
void hm_context_end(int device, bool made);
/* A context of the device is gone. */
void hm_context_gone(int device);

/* An image was looked at: charge what the device services that it may call will take. False: does not fit. */
bool hm_context_services_fit(void);

/* A context is being made on the device, by any thread of this process. */
bool hm_context_creating(int device);

/* What a process's contexts take at least, with the services, which come with the first kernel that calls them: that may be
   yet to come. 0: not known. */
uint64_t hm_context_least_bytes(int device, const struct hm_use *use);

/* In a fork child: nothing is being made. */
void hm_context_after_fork_child(void);
