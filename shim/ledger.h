/*
 * The arithmetic of the usage page: sums over slots, and the one word by which a process is granted bytes.
 *
 * Invariant: the sum over living slots of granted + overhead never exceeds cap - HM_RESERVE_BYTES by a grant.
 */
#pragma once
#include "tenant.h"

/* Bytes in HM_UNIT_BYTES, rounded up; UINT32_MAX for more than the word can hold. */
uint32_t hm_units(uint64_t bytes);

/* Take units out of what this process was granted already. Lock-free. False: not enough. */
bool hm_ledger_take(struct hm_use *use, uint32_t units);

/* Give units back. The grant stays until somebody needs it. */
void hm_ledger_give(struct hm_use *use, uint32_t units);

/*
 * Raise the grant of this process by what is missing, and take the units, if afterwards at least margin_bytes stay
 * free under the cap; surplus grants of the others are called in first. False: does not fit.
 */
bool hm_ledger_grow(int device, struct hm_use *use, uint32_t units, uint64_t margin_bytes);

/* Take units that the driver took already, cap or not. */
void hm_ledger_force(struct hm_use *use, uint32_t units);

/* Add to this process's overhead if it fits under the cap (or force is set); bytes may be negative. */
bool hm_ledger_overhead(int device, struct hm_use *use, int64_t bytes, bool force);

/* What the tenant holds on a device now: used + overhead of the living. No lock. */
uint64_t hm_ledger_charged(int device);

/* Of that, what its exporter gave up and an importer still holds. No lock. */
uint64_t hm_ledger_orphans(int device);

/* What can still be allocated: cap - reserve - charged, 0 if less. No lock. UINT64_MAX when uncapped. */
uint64_t hm_ledger_room(int device);

/* The cap, read now; UINT64_MAX when uncapped. */
uint64_t hm_cap_bytes(int device);
