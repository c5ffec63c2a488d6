#include "cuda_pool.h"

#include <string.h>

#include "cuda_capture.h"

HM_EXPORT CUresult
cuDeviceGetDefaultMemPool(CUmemoryPool *handle, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = hm_pool_default(device)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetMemPool(CUmemoryPool *handle, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = hm_pool_current(device)->handle;
    return CUDA_SUCCESS;
}

static CUresult
set_current(CUdevice device, CUmemoryPool handle)
{
    struct hm_pool *pool = hm_pool_find(handle);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (pool == NULL || pool->card != hm_driver.cards[device])
        return CUDA_ERROR_INVALID_VALUE;
    hm_pool_set_current(device, pool);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle)
{
    HM_ENTER(HM_INITIALIZED);
    return set_current(device, handle);
}

/* The forms of CUDA 13 name a location; only devices have pools here. */
static CUresult
device_of(const CUmemLocation *location, CUmemAllocationType type, CUdevice *device)
{
    if (location == NULL || type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (location->type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    *device = location->id;
    return hm_device_valid(*device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

HM_EXPORT CUresult
cuMemGetDefaultMemPool(CUmemoryPool *handle, CUmemLocation *location, CUmemAllocationType type)
{
    HM_ENTER(HM_INITIALIZED);
    CUdevice device;
    CUresult result = device_of(location, type, &device);

    if (result != CUDA_SUCCESS || handle == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *handle = hm_pool_default(device)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemGetMemPool(CUmemoryPool *handle, CUmemLocation *location, CUmemAllocationType type)
{
    HM_ENTER(HM_INITIALIZED);
    CUdevice device;
    CUresult result = device_of(location, type, &device);

    if (result != CUDA_SUCCESS || handle == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *handle = hm_pool_current(device)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool handle)
{
    HM_ENTER(HM_INITIALIZED);
    CUdevice device;
    CUresult result = device_of(location, type, &device);

    return result != CUDA_SUCCESS ? result : set_current(device, handle);
}

HM_EXPORT CUresult
cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *props)
{
    HM_ENTER(HM_INITIALIZED);
    CUdevice device;
    CUresult result;

    if (handle == NULL || props == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    result = device_of(&props->location, props->allocType, &device);
    if (result == CUDA_SUCCESS)
        *handle = hm_pool_new(hm_driver.cards[device], props)->handle;
    return result;
}

HM_EXPORT CUresult
cuMemPoolDestroy(CUmemoryPool handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_pool *pool = hm_pool_find(handle);

    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (CUdevice device = 0; device < hm_driver.device_count; device++) {
        if (hm_pool_default(device) == pool)
            return CUDA_ERROR_NOT_PERMITTED;
    }
    hm_pool_delete(pool);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolTrimTo(CUmemoryPool handle, size_t keep_bytes)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_pool *pool = hm_pool_find(handle);
    CUresult result = hm_capture_unsafe(); /* so in the driver (580) */

    if (result != CUDA_SUCCESS)
        return result;
    if (pool == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    hm_streams_pump(false);
    hm_pool_trim(pool, keep_bytes);
    return CUDA_SUCCESS;
}

/* Which of the REUSE attributes, or -1. */
static int
reuse_index(CUmemPool_attribute name)
{
    return name >= CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES &&
                   name <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES
               ? (int)name - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES
               : -1;
}

static uint64_t *
number(struct hm_pool *pool, CUmemPool_attribute name)
{
    switch (name) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        return &pool->release_threshold;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        return &pool->reserved_bytes;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        return &pool->reserved_high;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        return &pool->used_bytes;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        return &pool->used_high;
    default:
        return NULL;
    }
}

HM_EXPORT CUresult
cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute name, void *value)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_pool *pool = hm_pool_find(handle);
    int reuse = reuse_index(name);
    CUresult result = hm_capture_unsafe(); /* so in the driver (580) */

    if (result != CUDA_SUCCESS)
        return result;
    if (pool == NULL || value == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    hm_streams_pump(false);
    if (reuse >= 0)
        *(int *)value = pool->reuse[reuse];
    else if (number(pool, name) != NULL)
        *(cuuint64_t *)value = *number(pool, name);
    else
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute name, void *value)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_pool *pool = hm_pool_find(handle);
    int reuse = reuse_index(name);

    if (pool == NULL || value == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (reuse >= 0)
        pool->reuse[reuse] = *(int *)value;
    else if (name == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
        pool->release_threshold = *(cuuint64_t *)value;
    else if (name == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH && *(cuuint64_t *)value == 0)
        pool->reserved_high = pool->reserved_bytes;
    else if (name == CU_MEMPOOL_ATTR_USED_MEM_HIGH && *(cuuint64_t *)value == 0)
        pool->used_high = pool->used_bytes;
    else
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc *map, size_t count)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_pool *pool = hm_pool_find(handle);

    if (pool == NULL || map == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        if (map[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
            continue;
        if (!hm_device_valid(map[i].location.id))
            return CUDA_ERROR_INVALID_DEVICE;
        pool->access[hm_driver.cards[map[i].location.id]] = map[i].flags;
    }
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool handle, CUmemLocation *location)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_pool *pool = hm_pool_find(handle);

    if (pool == NULL || flags == NULL || location == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (location->type != CU_MEM_LOCATION_TYPE_DEVICE || !hm_device_valid(location->id))
        return CUDA_ERROR_INVALID_DEVICE;
    *flags = pool->access[hm_driver.cards[location->id]];
    return CUDA_SUCCESS;
}
