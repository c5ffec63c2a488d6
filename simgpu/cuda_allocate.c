#include "cuda_capture.h"
#include "cuda_memory.h"
#include "cuda_pool.h"

#define PITCH_ALIGNMENT 512

static CUresult
allocate(struct hm_context *ctx, enum hm_memory kind, uint64_t bytes, CUdeviceptr *address)
{
    CUresult result = hm_capture_unsafe();
    struct hm_range *range;

    if (address == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = hm_memory_new(ctx, kind, bytes, &range);
    if (result == CUDA_SUCCESS)
        *address = range->address;
    return result;
}

HM_EXPORT CUresult
cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    return allocate(call.ctx, HM_MEMORY_DEVICE, bytes, address);
}

HM_EXPORT CUresult
cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height,
                   unsigned int element)
{
    HM_ENTER(HM_CURRENT);
    CUresult result;

    if (pitch == NULL || (element != 4 && element != 8 && element != 16))
        return CUDA_ERROR_INVALID_VALUE;
    result =
        allocate(call.ctx, HM_MEMORY_DEVICE, hm_round_up(width, PITCH_ALIGNMENT) * height, address);
    if (result == CUDA_SUCCESS)
        *pitch = hm_round_up(width, PITCH_ALIGNMENT);
    return result;
}

HM_EXPORT CUresult
cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);

    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(call.ctx, HM_MEMORY_MANAGED, bytes, address);
}

static CUresult
free_graph_memory(struct hm_graph_memory *memory)
{
    if (!memory->in_use)
        return CUDA_ERROR_INVALID_VALUE;
    hm_graph_memory_hold(memory);
    hm_graph_memory_unuse(memory);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemFree_v2(CUdeviceptr address)
{
    HM_ENTER(HM_CURRENT);
    struct hm_range *range = hm_range_at(address);
    CUresult result = hm_capture_unsafe();

    if (address == 0)
        return CUDA_SUCCESS;
    if (result != CUDA_SUCCESS)
        return result;
    if (range == NULL || range->address != address)
        return CUDA_ERROR_INVALID_VALUE;
    if (range->ctx != NULL)
        hm_context_drain(range->ctx);
    switch (range->kind) {
    case HM_MEMORY_DEVICE:
    case HM_MEMORY_MANAGED:
    case HM_MEMORY_EXTERNAL:
        hm_memory_delete(range);
        return CUDA_SUCCESS;
    case HM_MEMORY_POOL:
        hm_context_drain(call.ctx);
        hm_pool_free(address);
        return CUDA_SUCCESS;
    case HM_MEMORY_GRAPH:
        hm_context_drain(call.ctx);
        return free_graph_memory(range->owner);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

HM_EXPORT CUresult
cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_card *card = &hm_driver.state->card[call.ctx->card];

    if (free_bytes == NULL || total_bytes == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    hm_state_lock();
    hm_process_reap();
    *free_bytes = (card->blocks_total - card->blocks_used) * HM_BLOCK_BYTES;
    *total_bytes = card->blocks_total * HM_BLOCK_BYTES;
    hm_state_unlock();
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_range *range = hm_range_at(address);

    if (range == NULL || range->kind == HM_MEMORY_REGISTERED)
        return CUDA_ERROR_NOT_FOUND;
    if (base != NULL)
        *base = range->address;
    if (bytes != NULL)
        *bytes = range->bytes;
    return CUDA_SUCCESS;
}

static CUresult
advise(CUdeviceptr address, size_t bytes)
{
    const struct hm_range *range = hm_range_at(address);

    if (bytes == 0 || range == NULL || range->kind != HM_MEMORY_MANAGED)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemAdvise(CUdeviceptr address, size_t bytes, CUmem_advise advice, CUdevice device)
{
    HM_ENTER(HM_CURRENT);
    (void)advice;
    (void)device;
    return advise(address, bytes);
}

HM_EXPORT CUresult
cuMemAdvise_v2(CUdeviceptr address, size_t bytes, CUmem_advise advice, CUmemLocation location)
{
    HM_ENTER(HM_CURRENT);
    (void)advice;
    (void)location;
    return advise(address, bytes);
}

static CUresult
prefetch(CUdeviceptr address, size_t bytes, bool to_device)
{
    CUresult result = advise(address, bytes);

    if (result == CUDA_SUCCESS && to_device)
        hm_managed_touch(address);
    return result;
}

HM_EXPORT CUresult
cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice device, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    (void)stream;
    return prefetch(address, bytes, device != CU_DEVICE_CPU);
}

HM_EXPORT CUresult
cuMemPrefetchAsync_v2(CUdeviceptr address, size_t bytes, CUmemLocation location, unsigned int flags,
                      CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    (void)stream;
    (void)flags;
    return prefetch(address, bytes, location.type == CU_MEM_LOCATION_TYPE_DEVICE);
}
