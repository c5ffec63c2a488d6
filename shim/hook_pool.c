/*
 * Stream-ordered memory. What a pool holds reserved is what it takes of the card; the driver tells it in 35 ns, so it
 * is read after each allocation, and the last value read is what is charged. Freeing changes nothing by itself: the
 * driver gives memory back at synchronizations, and that is seen at the next reading.
 */
#include "pool.h"

#include "capture.h"
#include "ledger.h"

#include <pthread.h>

#define POOLS 256 /* of one process; what lies in further ones counts as overhead, from NVML */
#define GROWTH_BYTES 33554432 /* a pool grows by whole multiples of this (H100, driver 580) */
#define SURELY 4              /* times what is asked has to lie unused before we count on it */

struct pool {
    CUmemoryPool handle;     /* NULL: the entry is free */
    struct hm_charge charge; /* under the mutex */
    uint64_t charged_bytes;  /* the same figure, atomic: for a look without the mutex */
};

static struct pool pools[POOLS];
static int pool_high; /* no entry at or above was ever used; raised under the mutex */
static struct pool *current[HM_DEVICES]; /* the device's current pool; NULL: ask the driver */
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

/* An allocation in a capture takes nothing: it becomes a node of a graph. */
static bool
captures(CUstream stream, bool per_thread)
{
    return hm_active() && hm_capture_runs(stream, per_thread);
}

static struct pool *
find(CUmemoryPool handle)
{
    int high = __atomic_load_n(&pool_high, __ATOMIC_ACQUIRE);

    for (int i = 0; handle != NULL && i < high; i++)
        if (__atomic_load_n(&pools[i].handle, __ATOMIC_ACQUIRE) == handle)
            return &pools[i];
    return NULL;
}

static struct pool *
add(CUmemoryPool handle, int device)
{
    struct pool *pool;

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

/* Charge what the pool holds now. The mutex is held. */
static void
read_pool(struct pool *pool)
{
    cuuint64_t reserved;

    if (!look(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved))
        return; /* what was charged stays */
    hm_quota_adjust(&pool->charge, reserved);
    __atomic_store_n(&pool->charged_bytes, pool->charge.bytes, __ATOMIC_RELAXED);
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

static struct pool *
current_pool(CUstream stream)
{
    int device = hm_active() ? stream_device(stream) : -1;
    struct pool *pool = device >= 0 ? __atomic_load_n(&current[device], __ATOMIC_ACQUIRE) : NULL;
    CUmemoryPool handle;

    if (HM_LIKELY(pool != NULL) || device < 0 ||
        REAL(cuDeviceGetMemPool(&handle, hm_device_handle(device))) != CUDA_SUCCESS)
        return pool;
    pool = find(handle);
    if (pool == NULL)
        pool = add(handle, device);
    __atomic_store_n(&current[device], pool, __ATOMIC_RELEASE);
    return pool;
}

/* An allocation from a pool in flight: what it may make the pool grow by is reserved. */
struct pool_call {
    struct pool *pool; /* NULL: not ours to account for */
    struct hm_charge charge;
    uint64_t bytes;
};

static uint64_t
growth(uint64_t bytes, uint64_t step)
{
    return bytes > UINT64_MAX - step ? bytes : (bytes + step - 1) / step * step;
}

/* The pool surely has so much unused: several times as much, in whatever pieces. */
static bool
has_unused(const struct pool *pool, uint64_t bytes)
{
    uint64_t used = attribute(pool->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
    uint64_t reserved = attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);

    return reserved > used && (reserved - used) / SURELY >= bytes;
}

/* False: out of memory. Where a whole step does not fit any more, the pool can still serve from what it has. */
static bool
begin(struct pool_call *call, struct pool *pool, uint64_t bytes)
{
    int device = pool != NULL ? pool->charge.device : -1;

    *call = (struct pool_call){.pool = pool, .charge = {.device = -1}, .bytes = bytes};
    if (device < 0 ||
        HM_LIKELY(hm_quota_try(&call->charge, HM_KINDS, device, growth(bytes, GROWTH_BYTES))) ||
        has_unused(pool, bytes))
        return true;
    return hm_quota_reserve(&call->charge, HM_KINDS, device, growth(bytes, GROWTH_BYTES));
}

/* The reservation becomes part of the pool's charge, and that what the pool holds now. True: within the cap. */
static bool
settle(struct pool_call *call)
{
    struct pool *pool = call->pool;
    int device = pool->charge.device;
    bool grew;

    if (HM_LIKELY(attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) ==
                  __atomic_load_n(&pool->charged_bytes, __ATOMIC_RELAXED))) {
        hm_quota_release(&call->charge);
        return true;
    }
    pthread_mutex_lock(&mutex);
    grew = attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >
           pool->charge.bytes + call->charge.bytes;
    hm_quota_join(&pool->charge, &call->charge);
    read_pool(pool);
    pthread_mutex_unlock(&mutex);
    hm_quota_done(&call->charge);
    return !grew || hm_ledger_charged(device) + HM_RESERVE_BYTES <= hm_cap_bytes(device);
}

/* The pool grew by more than there was room for: undo. per_thread: the stream argument has that meaning. */
static CUresult
undo(const struct pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread)
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

static CUresult
end(struct pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread, CUresult result)
{
    if (call->pool == NULL || settle(call) || result != CUDA_SUCCESS)
        return result;
    return undo(call, dptr, stream, per_thread);
}

HM_HOOK CUresult
cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    struct pool_call call;

    if (!begin(&call, captures(hStream, false) ? NULL : current_pool(hStream), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return end(&call, dptr, hStream, false, REAL(cuMemAllocAsync(dptr, bytesize, hStream)));
}

HM_HOOK CUresult
cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    struct pool_call call;

    if (!begin(&call, captures(hStream, true) ? NULL : current_pool(hStream), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return end(&call, dptr, hStream, true, REAL(cuMemAllocAsync_ptsz(dptr, bytesize, hStream)));
}

static struct pool *
known_pool(CUmemoryPool handle)
{
    return hm_active() ? find(handle) : NULL;
}

HM_HOOK CUresult
cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream)
{
    struct pool_call call;

    if (!begin(&call, captures(hStream, false) ? NULL : known_pool(pool), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return end(&call, dptr, hStream, false,
               REAL(cuMemAllocFromPoolAsync(dptr, bytesize, pool, hStream)));
}

HM_HOOK CUresult
cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool,
                             CUstream hStream)
{
    struct pool_call call;

    if (!begin(&call, captures(hStream, true) ? NULL : known_pool(pool), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return end(&call, dptr, hStream, true,
               REAL(cuMemAllocFromPoolAsync_ptsz(dptr, bytesize, pool, hStream)));
}

HM_HOOK CUresult
cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps)
{
    CUresult result = REAL(cuMemPoolCreate(pool, poolProps));
    int device;

    if (result != CUDA_SUCCESS || !hm_active() ||
        poolProps->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return result;
    device = hm_device_index(poolProps->location.id);
    if (device >= 0)
        add(*pool, device);
    return result;
}

/* Take a pool out of the table: nobody may ask the driver about one that is being destroyed. Returns its charge. */
static struct hm_charge
forget(struct pool *pool)
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

/* What is still allocated from a destroyed pool is overhead, by NVML, until it is freed. */
HM_HOOK CUresult
cuMemPoolDestroy(CUmemoryPool pool)
{
    struct pool *known = known_pool(pool);
    struct hm_charge charge = known != NULL ? forget(known) : (struct hm_charge){.device = -1};
    CUresult result = REAL(cuMemPoolDestroy(pool));

    hm_quota_release(&charge);
    if (result != CUDA_SUCCESS && known != NULL)
        add(pool, charge.device); /* and charged again when it is next looked at */
    return result;
}

HM_HOOK CUresult
cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep)
{
    struct pool *known = known_pool(pool);
    CUresult result = REAL(cuMemPoolTrimTo(pool, minBytesToKeep));

    if (known != NULL) {
        pthread_mutex_lock(&mutex);
        read_pool(known);
        pthread_mutex_unlock(&mutex);
    }
    return result;
}

/* The current pool may be another now: ask the driver again at the next allocation. */
static void
forget_current(void)
{
    for (int i = 0; i < HM_DEVICES; i++)
        __atomic_store_n(&current[i], NULL, __ATOMIC_RELEASE);
}

HM_HOOK CUresult
cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool)
{
    CUresult result = REAL(cuDeviceSetMemPool(dev, pool));

    forget_current();
    return result;
}

HM_HOOK CUresult
cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool)
{
    CUresult result = REAL(cuMemSetMemPool(location, type, pool));

    forget_current();
    return result;
}

static void
each_pool(int device, bool trim)
{
    CUstreamCaptureMode mode;

    if (__atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) == 0)
        return;
    mode = exchange(CU_STREAM_CAPTURE_MODE_RELAXED);
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < pool_high; i++) {
        if (pools[i].handle == NULL || (device >= 0 && pools[i].charge.device != device))
            continue;
        if (trim)
            REAL(cuMemPoolTrimTo(pools[i].handle, 0));
        read_pool(&pools[i]);
    }
    pthread_mutex_unlock(&mutex);
    exchange(mode);
}

void
hm_pool_refresh(int device)
{
    each_pool(device, false);
}

/* The driver gives back what pools hold unused when the program waits for its work. */
static CUresult
synchronized(CUresult result)
{
    if (hm_active())
        each_pool(-1, false);
    return result;
}

HM_HOOK CUresult
cuStreamSynchronize(CUstream hStream)
{
    return synchronized(REAL(cuStreamSynchronize(hStream)));
}

HM_HOOK CUresult
cuStreamSynchronize_ptsz(CUstream hStream)
{
    return synchronized(REAL(cuStreamSynchronize_ptsz(hStream)));
}

HM_HOOK CUresult
cuEventSynchronize(CUevent hEvent)
{
    return synchronized(REAL(cuEventSynchronize(hEvent)));
}

HM_HOOK CUresult
cuCtxSynchronize(void)
{
    return synchronized(REAL(cuCtxSynchronize()));
}

HM_HOOK CUresult
cuCtxSynchronize_v2(CUcontext ctx)
{
    return synchronized(REAL(cuCtxSynchronize_v2(ctx)));
}

void
hm_pool_trim(int device)
{
    each_pool(device, true);
}

void
hm_pool_after_fork_child(void)
{
    pthread_mutex_init(&mutex, NULL);
    for (int i = 0; i < pool_high; i++)
        pools[i].handle = NULL;
    forget_current();
}
