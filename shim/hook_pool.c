/* Stream-ordered memory, and the calls at which its pools give memory back. */
#include "capture.h"
#include "pool.h"

/* An allocation in a capture takes nothing: it becomes a node of a graph. */
static bool
captures(CUstream stream, bool per_thread)
{
    return hm_active() && hm_capture_runs(stream, per_thread);
}

HM_HOOK CUresult
cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    struct hm_pool_call call;

    if (!hm_pool_begin(&call, captures(hStream, false) ? NULL : hm_pool_current(hStream), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_pool_end(&call, dptr, hStream, false, REAL(cuMemAllocAsync(dptr, bytesize, hStream)));
}

HM_HOOK CUresult
cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    struct hm_pool_call call;

    if (!hm_pool_begin(&call, captures(hStream, true) ? NULL : hm_pool_current(hStream), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_pool_end(&call, dptr, hStream, true,
                       REAL(cuMemAllocAsync_ptsz(dptr, bytesize, hStream)));
}

HM_HOOK CUresult
cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream)
{
    struct hm_pool_call call;

    if (!hm_pool_begin(&call, captures(hStream, false) ? NULL : hm_pool_known(pool), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_pool_end(&call, dptr, hStream, false,
                       REAL(cuMemAllocFromPoolAsync(dptr, bytesize, pool, hStream)));
}

HM_HOOK CUresult
cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool,
                             CUstream hStream)
{
    struct hm_pool_call call;

    if (!hm_pool_begin(&call, captures(hStream, true) ? NULL : hm_pool_known(pool), bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_pool_end(&call, dptr, hStream, true,
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
        hm_pool_add(*pool, device);
    return result;
}

/* What is still allocated from a destroyed pool is overhead, by NVML, until it is freed. */
HM_HOOK CUresult
cuMemPoolDestroy(CUmemoryPool pool)
{
    struct hm_pool *known = hm_pool_known(pool);
    int call = hm_pool_sync_begin(), device = known != NULL ? hm_pool_forget(known) : -1;
    CUresult result = REAL(cuMemPoolDestroy(pool));

    if (result != CUDA_SUCCESS && known != NULL)
        hm_pool_add(pool, device);
    hm_pool_sync_end(call);
    return result;
}

/* The driver gives back what pools hold unused when the program trims one or waits for its work. */
#define SYNCHRONIZED(call)                     \
    ({                                         \
        int hm_call = hm_pool_sync_begin();    \
        CUresult hm_synchronized = REAL(call); \
        hm_pool_sync_end(hm_call);             \
        hm_synchronized;                       \
    })

HM_HOOK CUresult
cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep)
{
    return SYNCHRONIZED(cuMemPoolTrimTo(pool, minBytesToKeep));
}

HM_HOOK CUresult
cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool)
{
    CUresult result = REAL(cuDeviceSetMemPool(dev, pool));

    hm_pool_forget_current();
    return result;
}

HM_HOOK CUresult
cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool)
{
    CUresult result = REAL(cuMemSetMemPool(location, type, pool));

    hm_pool_forget_current();
    return result;
}

HM_HOOK CUresult
cuStreamSynchronize(CUstream hStream)
{
    return SYNCHRONIZED(cuStreamSynchronize(hStream));
}

HM_HOOK CUresult
cuStreamSynchronize_ptsz(CUstream hStream)
{
    return SYNCHRONIZED(cuStreamSynchronize_ptsz(hStream));
}

HM_HOOK CUresult
cuEventSynchronize(CUevent hEvent)
{
    return SYNCHRONIZED(cuEventSynchronize(hEvent));
}

HM_HOOK CUresult
cuCtxSynchronize(void)
{
    return SYNCHRONIZED(cuCtxSynchronize());
}

HM_HOOK CUresult
cuCtxSynchronize_v2(CUcontext ctx)
{
    return SYNCHRONIZED(cuCtxSynchronize_v2(ctx));
}
