/* Memory in two steps, physical and mapped (cuMemCreate), and memory of other APIs. */
#include "physical.h"

/* The tenant's index of the device that physical memory is asked for on; -1: host memory, or not ours. */
static int
location(const CUmemAllocationProp *prop)
{
    if (!hm_active() || prop == NULL || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return -1;
    return hm_device_index(prop->location.id);
}

HM_HOOK CUresult
cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
            unsigned long long flags)
{
    struct hm_charge charge;

    if (!hm_quota_reserve(&charge, HM_VIRTUAL, location(prop), hm_whole_blocks(size)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_physical_created(&charge, handle, REAL(cuMemCreate(handle, size, prop, flags)));
}

HM_HOOK CUresult
cuMemRelease(CUmemGenericAllocationHandle handle)
{
    struct hm_physical *physical = hm_active() ? hm_physical_take(handle) : NULL;

    return hm_physical_released(physical, handle, REAL(cuMemRelease(handle)));
}

HM_HOOK CUresult
cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
         unsigned long long flags)
{
    struct hm_physical *physical = hm_active() ? hm_physical_hold(handle) : NULL;

    return hm_physical_mapped(physical, ptr, size, offset,
                              REAL(cuMemMap(ptr, size, offset, handle, flags)));
}

HM_HOOK CUresult
cuMemUnmap(CUdeviceptr ptr, size_t size)
{
    struct hm_charge flight;

    if (!hm_active())
        return REAL(cuMemUnmap(ptr, size));
    flight = hm_physical_unmapping(ptr);
    return hm_physical_unmapped(&flight, ptr, size, REAL(cuMemUnmap(ptr, size)));
}

HM_HOOK CUresult
cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)
{
    CUresult result = REAL(cuMemRetainAllocationHandle(handle, addr));

    return hm_physical_retained(result == CUDA_SUCCESS ? *handle : 0, addr, result);
}

HM_HOOK CUresult
cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                             CUmemAllocationHandleType handleType, unsigned long long flags)
{
    CUresult result =
        REAL(cuMemExportToShareableHandle(shareableHandle, handle, handleType, flags));

    if (result == CUDA_SUCCESS && hm_active())
        hm_physical_exported(handle);
    return result;
}

HM_HOOK CUresult
cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle,
                               CUmemAllocationHandleType shHandleType)
{
    return hm_physical_imported(
        handle, REAL(cuMemImportFromShareableHandle(handle, osHandle, shHandleType)));
}

/* Into sparse and deferred arrays. An unmap happens in stream order; its charge goes at once. */
HM_HOOK CUresult
cuMemMapArrayAsync(CUarrayMapInfo *mapInfoList, unsigned int count, CUstream hStream)
{
    return hm_physical_tiled(mapInfoList, count,
                             REAL(cuMemMapArrayAsync(mapInfoList, count, hStream)));
}

HM_HOOK CUresult
cuMemMapArrayAsync_ptsz(CUarrayMapInfo *mapInfoList, unsigned int count, CUstream hStream)
{
    return hm_physical_tiled(mapInfoList, count,
                             REAL(cuMemMapArrayAsync_ptsz(mapInfoList, count, hStream)));
}

HM_HOOK CUresult
cuImportExternalMemory(CUexternalMemory *extMem_out,
                       const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *memHandleDesc)
{
    int device = memHandleDesc != NULL ? hm_device_current() : -1;
    struct hm_charge charge;
    CUresult result;

    if (!hm_quota_reserve(&charge, HM_EXTERNAL, device,
                          device >= 0 ? hm_whole_blocks(memHandleDesc->size) : 0))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuImportExternalMemory(extMem_out, memHandleDesc));
    return hm_quota_settle(&charge, HM_EXTERNAL_HANDLE,
                           result == CUDA_SUCCESS ? (uintptr_t)*extMem_out : 0, true, result);
}

HM_HOOK CUresult
cuDestroyExternalMemory(CUexternalMemory extMem)
{
    struct hm_object object;
    bool known = hm_active() && hm_object_take(HM_EXTERNAL_HANDLE, (uintptr_t)extMem, &object);

    return hm_object_freed(known, &object, REAL(cuDestroyExternalMemory(extMem)));
}
