/* Linear and managed memory. */
#include "overhead.h"
#include "quota.h"

#define SMALL_BYTES \
    1048576      /* up to here the driver packs allocations into shared blocks (H100, driver 580) */
#define SHARED 1 /* hm_object.value: others may hold this memory */
#define PITCH_BYTES 512 /* the driver's row alignment (H100, driver 580) */

static bool
reserve_linear(struct hm_charge *charge, uint64_t bytes)
{
    return hm_quota_reserve(charge, HM_LINEAR, hm_device_current(),
                            bytes <= SMALL_BYTES ? bytes : hm_whole_blocks(bytes));
}

HM_HOOK CUresult
cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)
{
    struct hm_charge charge;
    CUresult result;

    if (!reserve_linear(&charge, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuMemAlloc_v2(dptr, bytesize));
    return hm_quota_settle(&charge, HM_POINTER, result == CUDA_SUCCESS ? *dptr : 0, true, result);
}

HM_HOOK CUresult
cuMemAlloc(CUdeviceptr_v1 *dptr, unsigned int bytesize)
{
    struct hm_charge charge;
    CUresult result;

    if (!reserve_linear(&charge, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuMemAlloc(dptr, bytesize));
    return hm_quota_settle(&charge, HM_POINTER, result == CUDA_SUCCESS ? *dptr : 0, true, result);
}

static bool
reserve_rows(struct hm_charge *charge, uint64_t width, uint64_t height)
{
    uint64_t pitch = (width + PITCH_BYTES - 1) / PITCH_BYTES * PITCH_BYTES, bytes;

    if (__builtin_mul_overflow(pitch, height, &bytes))
        bytes = UINT64_MAX;
    return reserve_linear(charge, bytes);
}

HM_HOOK CUresult
cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height,
                   unsigned int ElementSizeBytes)
{
    struct hm_charge charge;
    CUresult result;

    if (!reserve_rows(&charge, WidthInBytes, Height))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuMemAllocPitch_v2(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes));
    if (result == CUDA_SUCCESS && *pPitch * Height > SMALL_BYTES)
        hm_quota_adjust(&charge, hm_whole_blocks(*pPitch * Height));
    return hm_quota_settle(&charge, HM_POINTER, result == CUDA_SUCCESS ? *dptr : 0, true, result);
}

HM_HOOK CUresult
cuMemAllocPitch(CUdeviceptr_v1 *dptr, unsigned int *pPitch, unsigned int WidthInBytes,
                unsigned int Height, unsigned int ElementSizeBytes)
{
    struct hm_charge charge;
    CUresult result;

    if (!reserve_rows(&charge, WidthInBytes, Height))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuMemAllocPitch(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes));
    return hm_quota_settle(&charge, HM_POINTER, result == CUDA_SUCCESS ? *dptr : 0, true, result);
}

HM_HOOK CUresult
cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags)
{
    struct hm_charge charge;
    CUresult result;

    if (!hm_quota_reserve(&charge, HM_MANAGED, hm_device_current(), hm_whole_blocks(bytesize)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuMemAllocManaged(dptr, bytesize, flags));
    return hm_quota_settle(&charge, HM_POINTER, result == CUDA_SUCCESS ? *dptr : 0, true, result);
}

/* Memory that was shared by IPC stays on the card while somebody holds it, and NVML bills it to him (driver 580). */
static CUresult
freed(bool known, const struct hm_object *object, CUresult result)
{
    if (known && result == CUDA_SUCCESS && object->value == SHARED)
        hm_overhead_refresh(object->charge.device);
    return hm_object_freed(known, object, result);
}

static bool
take(CUdeviceptr dptr, struct hm_object *object)
{
    return hm_active() && hm_object_take(HM_POINTER, dptr, object);
}

HM_HOOK CUresult
cuMemFree_v2(CUdeviceptr dptr)
{
    struct hm_object object;
    bool known = take(dptr, &object);

    return freed(known, &object, REAL(cuMemFree_v2(dptr)));
}

HM_HOOK CUresult
cuMemFree(CUdeviceptr_v1 dptr)
{
    struct hm_object object;
    bool known = take(dptr, &object);

    return freed(known, &object, REAL(cuMemFree(dptr)));
}

/* Takes pointers of cuMemAlloc too, and frees them at once. A pool's are not known here: hook_pool.c reads its pools. */
HM_HOOK CUresult
cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream)
{
    struct hm_object object;
    bool known = take(dptr, &object);

    return freed(known, &object, REAL(cuMemFreeAsync(dptr, hStream)));
}

HM_HOOK CUresult
cuMemFreeAsync_ptsz(CUdeviceptr dptr, CUstream hStream)
{
    struct hm_object object;
    bool known = take(dptr, &object);

    return freed(known, &object, REAL(cuMemFreeAsync_ptsz(dptr, hStream)));
}

static void
mark_shared(struct hm_object *object, void *unused)
{
    (void)unused;
    object->value = SHARED;
}

HM_HOOK CUresult
cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr)
{
    CUresult result = REAL(cuIpcGetMemHandle(pHandle, dptr));

    if (result == CUDA_SUCCESS && hm_active())
        hm_object_change(HM_POINTER, dptr, mark_shared, NULL);
    return result;
}
