/* The reservation around each allocation from a pool: what it may make the pool grow by. */
#include "pool_table.h"

#include "ledger.h"

#define GROWTH_BYTES 33554432 /* a pool grows by whole multiples of this (H100, driver 580) */

static uint64_t
growth(uint64_t bytes)
{
    return bytes > UINT64_MAX - GROWTH_BYTES
               ? bytes
               : (bytes + GROWTH_BYTES - 1) / GROWTH_BYTES * GROWTH_BYTES;
}

/* False: out of memory. Where a whole step does not fit any more, the pool can still serve from what it has. */
bool
hm_pool_begin(struct hm_pool_call *call, struct hm_pool *pool, uint64_t bytes)
{
    int device = pool != NULL ? pool->charge.device : -1;

    *call = (struct hm_pool_call){.pool = pool, .charge = {.device = -1}, .bytes = bytes};
    if (device < 0)
        return true;
    hm_pool_see_fall(pool);
    if (HM_LIKELY(hm_quota_try(&call->charge, HM_KINDS, device, growth(bytes))))
        return true;
    call->relies = hm_pool_rely_begin(pool, bytes);
    return call->relies || hm_quota_reserve(&call->charge, HM_KINDS, device, growth(bytes));
}

/* If the pool grew, the reservation becomes part of its charge, and that what it holds now. True: within the cap. */
static bool
settle(struct hm_pool_call *call)
{
    struct hm_pool *pool = call->pool;
    int device = pool->charge.device;
    bool reserved = true;

    if (HM_UNLIKELY(!hm_pool_is_as_seen(pool)))
        reserved = hm_pool_see_growth(pool, &call->charge);
    hm_quota_release(&call->charge); /* what has not become part of the pool's */
    return reserved || hm_ledger_charged(device) + HM_RESERVE_BYTES <= hm_cap_bytes(device);
}

/* The pool grew by more than there was room for: undo. per_thread: the stream argument has that meaning. */
static CUresult
undo(const struct hm_pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread)
{
    if (per_thread)
        REAL(cuMemFreeAsync_ptsz(*dptr, stream));
    else
        REAL(cuMemFreeAsync(*dptr, stream));
    *dptr = 0;
    hm_pool_trim(call->pool->charge.device);
    hm_quota_refused(call->pool->charge.device, call->bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult
hm_pool_end(struct hm_pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread,
            CUresult result)
{
    bool fits;

    if (call->pool == NULL)
        return result;
    fits = settle(call);
    if (call->relies)
        hm_pool_rely_end(call->pool);
    return fits || result != CUDA_SUCCESS ? result : undo(call, dptr, stream, per_thread);
}
