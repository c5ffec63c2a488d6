/*
 * The pools of this process, one by one. What pool.c, pool_charge.c and pool_call.c share; pool.h is for the hooks and for
 * whoever needs memory.
 */
#pragma once
#include "pool.h"

/* What has fallen is noted at a change of phase, and again at intervals (pool_charge.c). */
enum hm_pool_mark { HM_POOL_PHASE, HM_POOL_TIME, HM_POOL_MARKS };

struct hm_pool {
    CUmemoryPool handle;     /* NULL: destroyed; if nothing is charged either, the entry is free */
    struct hm_charge charge; /* under the lock, like peak and noted; at least seen_bytes */
    uint64_t seen_bytes;     /* its figure at the last look; written under the lock, atomic */
    uint64_t peak_bytes;     /* the most it held since nothing was charged beyond seen_bytes */
    uint64_t noted_bytes[HM_POOL_MARKS]; /* what was charged beyond when it was last noted */
    uint32_t looks;                      /* that began or ended: odd while somebody looks; atomic */
    uint32_t relying; /* allocations under way that count on what the pool has unused; atomic */
    bool trimmed;     /* about to lose what it has unused; atomic */
};

/* The lock over pools and their charges, never held over an allocation. */
void hm_pool_lock(void);
void hm_pool_unlock(void);

/* The entry after this one (NULL: the first), in use or not; NULL: no further one was ever used. No lock. */
struct hm_pool *hm_pool_next(const struct hm_pool *pool);

/* Some pool was ever known. */
static inline bool
hm_pool_any(void)
{
    return hm_pool_next(NULL) != NULL;
}

/*
 * Ask the driver about a pool: false, or 0, if it does not say. Beside an allocation, which the driver refuses where asking
 * would do harm to a capture; else between two exchanges of the capture mode.
 */
bool hm_pool_ask(CUmemoryPool handle, CUmemPool_attribute which, cuuint64_t *value);
uint64_t hm_pool_attribute(CUmemoryPool handle, CUmemPool_attribute which);

/* Count on bytes that the pool surely has unused, until rely_end: nobody trims it meanwhile. False: it may not have them. */
bool hm_pool_rely_begin(struct hm_pool *pool, uint64_t bytes);
void hm_pool_rely_end(struct hm_pool *pool);

/* Have the driver give back what the pool has unused, unless somebody counts on it. */
void hm_pool_trim_unused(struct hm_pool *pool);

/* In a fork child: no pool is known. */
void hm_pool_forget_all(void);

/* An allocation is about to be made: see a figure that has fallen before the pool grows again. */
void hm_pool_see_fall(struct hm_pool *pool);

/*
 * The pool holds no more than at the last look, and nobody looks at it now: an allocation that just returned is in its
 * charge. Who only compared could give his reservation back between another's look and its charge.
 */
bool hm_pool_is_as_seen(const struct hm_pool *pool);

/* The pool may hold more than at the last look: the reservation becomes part of its charge, and that what is due. False: it
   grew by more than was reserved. */
bool hm_pool_see_growth(struct hm_pool *pool, struct hm_charge *reservation);
