/*
 * Stream-ordered memory. What a pool holds reserved is what it takes of the card; the driver tells it in 35 ns, so it
 * is read after each allocation, and charged. Freeing changes nothing by itself: the driver gives memory back at
 * synchronizations and when a pool is trimmed. Its figure falls before the memory is free, so a smaller one counts only
 * once such a call of ours has returned.
 */
#include "pool.h"

#include "ledger.h"

#include <pthread.h>

#define POOLS 256 /* of one process; what lies in further ones counts as overhead, from NVML */
#define GROWTH_BYTES 33554432 /* a pool grows by whole multiples of this (H100, driver 580) */
#define SURELY 4              /* times what is asked has to lie unused before we count on it */

struct hm_pool {
    CUmemoryPool handle;     /* NULL: the entry is free */
    struct hm_charge charge; /* under the mutex */
    uint64_t charged_bytes;  /* the same figure, atomic: for a look without the mutex */
    uint32_t relying; /* allocations under way that count on what the pool has unused; atomic */
    bool trimmed;     /* about to lose what it has unused; atomic */
};

static struct hm_pool pools[POOLS];
static int pool_high; /* no entry at or above was ever used; raised under the mutex */
static struct hm_pool *current[HM_DEVICES]; /* the device's current pool; NULL: ask the driver */
static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* over pools and their charges, never over an allocation */

/*
 * To ask a pool anything, or to trim it, invalidates every capture of the process in the global mode and this thread's
 * own in the thread-local one (driver 580), unless the thread says that it knows what it does.
 */
static CUstreamCaptureMode
exchange(CUstreamCaptureMode mode)
{
    REAL(cuThreadExchangeStreamCaptureMode(&mode));
    return mode;
}

/* Beside an allocation, which the driver refuses where asking would do harm; else between two exchanges. */
static bool
look(CUmemoryPool handle, CUmemPool_attribute which, cuuint64_t *value)
{
    return REAL(cuMemPoolGetAttribute(handle, which, value)) == CUDA_SUCCESS;
}

static uint64_t
attribute(CUmemoryPool handle, CUmemPool_attribute which)
{
    cuuint64_t value = 0;

    look(handle, which, &value);
    return value;
}

static struct hm_pool *
find(CUmemoryPool handle)
{
    int high = __atomic_load_n(&pool_high, __ATOMIC_ACQUIRE);

    for (int i = 0; handle != NULL && i < high; i++)
        if (__atomic_load_n(&pools[i].handle, __ATOMIC_ACQUIRE) == handle)
            return &pools[i];
    return NULL;
}

struct hm_pool *
hm_pool_add(CUmemoryPool handle, int device)
{
    struct hm_pool *pool;

    pthread_mutex_lock(&mutex);
    pool = find(handle);
    for (int i = 0; pool == NULL && i < POOLS; i++) {
        if (pools[i].handle != NULL)
            continue;
        pool = &pools[i];
        pool->charge = (struct hm_charge){.device = device, .kind = HM_POOL};
        pool->charged_bytes = 0;
        __atomic_store_n(&pool->handle, handle, __ATOMIC_RELEASE);
        if (i >= pool_high)
            __atomic_store_n(&pool_high, i + 1,
                             __ATOMIC_RELEASE); /* pairs with the acquire in find */
    }
    pthread_mutex_unlock(&mutex);
    return pool;
}

/*
 * Charge what the pool holds now, or least_bytes if that is more. False: it holds less than is charged, or can't be
 * asked. The mutex is held.
 */
static bool
read_pool(struct hm_pool *pool, uint64_t least_bytes)
{
    cuuint64_t reserved;

    if (!look(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved))
        return false; /* what was charged stays */
    hm_quota_adjust(&pool->charge, reserved > least_bytes ? reserved : least_bytes);
    __atomic_store_n(&pool->charged_bytes, pool->charge.bytes, __ATOMIC_RELAXED);
    return reserved >= least_bytes;
}

/* The device on which a stream allocates, as the tenant's index. */
static int
stream_device(CUstream stream)
{
    CUdevice device;

    if (HM_LIKELY(hm_device_only() >= 0))
        return hm_device_only();
    if ((uintptr_t)stream <= (uintptr_t)CU_STREAM_PER_THREAD || !HM_HAS(cuStreamGetDevice) ||
        REAL(cuStreamGetDevice(stream, &device)) != CUDA_SUCCESS)
        return hm_device_current();
    return hm_device_index(device);
}

struct hm_pool *
hm_pool_current(CUstream stream)
{
    int device = hm_active() ? stream_device(stream) : -1;
    struct hm_pool *pool = device >= 0 ? __atomic_load_n(&current[device], __ATOMIC_ACQUIRE) : NULL;
    CUmemoryPool handle;

    if (HM_LIKELY(pool != NULL) || device < 0 ||
        REAL(cuDeviceGetMemPool(&handle, hm_device_handle(device))) != CUDA_SUCCESS)
        return pool;
    pool = find(handle);
    if (pool == NULL)
        pool = hm_pool_add(handle, device);
    __atomic_store_n(&current[device], pool, __ATOMIC_RELEASE);
    return pool;
}

static uint64_t
growth(uint64_t bytes, uint64_t step)
{
    return bytes > UINT64_MAX - step ? bytes : (bytes + step - 1) / step * step;
}

/* The pool surely has so much unused: several times as much, in whatever pieces, that no synchronization gives back. */
static bool
has_unused(const struct hm_pool *pool, uint64_t bytes)
{
    uint64_t used = attribute(pool->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
    uint64_t reserved = attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
    uint64_t kept = attribute(pool->handle, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);

    kept = kept < reserved ? kept : reserved;
    return kept > used && (kept - used) / SURELY >= bytes;
}

/* Count on what the pool has unused, and keep us from trimming it meanwhile. Each side says what it does, then looks. */
static bool
rely(struct hm_pool_call *call, struct hm_pool *pool)
{
    __atomic_fetch_add(&pool->relying, 1, __ATOMIC_SEQ_CST); /* pairs with trim_pool */
    call->relies =
        !__atomic_load_n(&pool->trimmed, __ATOMIC_SEQ_CST) && has_unused(pool, call->bytes);
    if (!call->relies)
        __atomic_fetch_sub(&pool->relying, 1, __ATOMIC_RELEASE);
    return call->relies;
}

static void
trim_pool(struct hm_pool *pool)
{
    __atomic_store_n(&pool->trimmed, true, __ATOMIC_SEQ_CST); /* pairs with rely */
    if (__atomic_load_n(&pool->relying, __ATOMIC_SEQ_CST) == 0)
        REAL(cuMemPoolTrimTo(pool->handle, 0));
    __atomic_store_n(&pool->trimmed, false, __ATOMIC_RELEASE);
}

/* False: out of memory. Where a whole step does not fit any more, the pool can still serve from what it has. */
bool
hm_pool_begin(struct hm_pool_call *call, struct hm_pool *pool, uint64_t bytes)
{
    int device = pool != NULL ? pool->charge.device : -1;

    *call = (struct hm_pool_call){.pool = pool, .charge = {.device = -1}, .bytes = bytes};
    if (device < 0 ||
        HM_LIKELY(hm_quota_try(&call->charge, HM_KINDS, device, growth(bytes, GROWTH_BYTES))) ||
        rely(call, pool))
        return true;
    return hm_quota_reserve(&call->charge, HM_KINDS, device, growth(bytes, GROWTH_BYTES));
}

/* If the pool grew, the reservation becomes part of its charge, and that what it holds now. True: within the cap. */
static bool
settle(struct hm_pool_call *call)
{
    struct hm_pool *pool = call->pool;
    int device = pool->charge.device;
    uint64_t before;
    bool grew;

    if (HM_LIKELY(attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) <=
                  __atomic_load_n(&pool->charged_bytes, __ATOMIC_RELAXED))) {
        hm_quota_release(&call->charge);
        return true;
    }
    pthread_mutex_lock(&mutex);
    before = pool->charge.bytes;
    grew =
        attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) > before + call->charge.bytes;
    hm_quota_join(&pool->charge, &call->charge);
    read_pool(pool, before);
    pthread_mutex_unlock(&mutex);
    hm_quota_done(&call->charge);
    return !grew || hm_ledger_charged(device) + HM_RESERVE_BYTES <= hm_cap_bytes(device);
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
        __atomic_fetch_sub(&call->pool->relying, 1, __ATOMIC_RELEASE); /* pairs with trim_pool */
    return fits || result != CUDA_SUCCESS ? result : undo(call, dptr, stream, per_thread);
}

struct hm_pool *
hm_pool_known(CUmemoryPool handle)
{
    return hm_active() ? find(handle) : NULL;
}

/* Take a pool out of the table: nobody may ask the driver about one that is being destroyed. Returns its charge. */
struct hm_charge
hm_pool_forget(struct hm_pool *pool)
{
    struct hm_charge charge;

    pthread_mutex_lock(&mutex);
    for (int i = 0; i < HM_DEVICES; i++)
        if (__atomic_load_n(&current[i], __ATOMIC_RELAXED) == pool)
            __atomic_store_n(&current[i], NULL, __ATOMIC_RELEASE);
    charge = pool->charge;
    __atomic_store_n(&pool->handle, NULL, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mutex);
    return charge;
}

/* The current pool may be another now: ask the driver again at the next allocation. */
void
hm_pool_forget_current(void)
{
    for (int i = 0; i < HM_DEVICES; i++)
        __atomic_store_n(&current[i], NULL, __ATOMIC_RELEASE);
}

enum visit { LOOK, SYNCHRONIZED, TRIM };

/* False: a pool of the device holds less than is charged for it. */
static bool
each_pool(int device, enum visit visit)
{
    CUstreamCaptureMode mode;
    bool exact = true;

    if (__atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) == 0)
        return true;
    mode = exchange(CU_STREAM_CAPTURE_MODE_RELAXED);
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < pool_high; i++) {
        if (pools[i].handle == NULL || (device >= 0 && pools[i].charge.device != device))
            continue;
        if (visit == TRIM)
            trim_pool(&pools[i]);
        exact &= read_pool(&pools[i], visit == LOOK ? pools[i].charge.bytes : 0);
    }
    pthread_mutex_unlock(&mutex);
    exchange(mode);
    return exact;
}

void
hm_pool_read(struct hm_pool *pool)
{
    pthread_mutex_lock(&mutex);
    read_pool(pool, 0);
    pthread_mutex_unlock(&mutex);
}

void
hm_pool_synchronized(void)
{
    each_pool(-1, SYNCHRONIZED);
}

bool
hm_pool_refresh(int device)
{
    return each_pool(device, LOOK);
}

void
hm_pool_trim(int device)
{
    each_pool(device, TRIM);
}

void
hm_pool_after_fork_child(void)
{
    pthread_mutex_init(&mutex, NULL);
    for (int i = 0; i < pool_high; i++)
        pools[i].handle = NULL;
    hm_pool_forget_current();
}
