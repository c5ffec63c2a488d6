#include "cuda_capture.h"
#include "cuda_memory.h"

#include <stdlib.h>

#define PAGE 4096

static CUresult
host_new(void **pointer, size_t bytes, unsigned int flags)
{
    struct hm_range range = {.kind = HM_MEMORY_HOST, .bytes = bytes, .flags = flags};
    void *memory;

    if (pointer == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (posix_memalign(&memory, PAGE, hm_round_up(bytes, PAGE)) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    range.address = (uint64_t)memory;
    range.ctx = hm_context_current();
    range.card = range.ctx->card;
    hm_range_add(&range);
    *pointer = memory;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    CUresult result = hm_capture_unsafe();

    return result != CUDA_SUCCESS ? result : host_new(pointer, bytes, flags);
}

HM_EXPORT CUresult
cuMemAllocHost_v2(void **pointer, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUresult result = hm_capture_unsafe();

    return result != CUDA_SUCCESS ? result : host_new(pointer, bytes, 0);
}

HM_EXPORT CUresult
cuMemFreeHost(void *pointer)
{
    HM_ENTER(HM_CURRENT);
    struct hm_range *range = hm_range_at((uint64_t)pointer);

    if (range == NULL || range->kind != HM_MEMORY_HOST || range->address != (uint64_t)pointer)
        return CUDA_ERROR_INVALID_VALUE;
    hm_context_drain(call.ctx);
    hm_memory_delete(range);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_range range = {.kind = HM_MEMORY_REGISTERED,
                             .address = (uint64_t)pointer,
                             .bytes = bytes,
                             .flags = flags,
                             .ctx = call.ctx,
                             .card = call.ctx->card};

    if (pointer == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (hm_range_at((uint64_t)pointer) != NULL)
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    hm_range_add(&range);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemHostUnregister(void *pointer)
{
    HM_ENTER(HM_CURRENT);
    struct hm_range *range = hm_range_at((uint64_t)pointer);

    if (range == NULL || range->kind != HM_MEMORY_REGISTERED)
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    hm_memory_delete(range);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *pointer, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_range *range = hm_range_at((uint64_t)pointer);

    if (address == NULL || flags != 0 || range == NULL || !hm_range_on_host(range))
        return CUDA_ERROR_INVALID_VALUE;
    *address = (CUdeviceptr)pointer;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemHostGetFlags(unsigned int *flags, void *pointer)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_range *range = hm_range_at((uint64_t)pointer);

    if (flags == NULL || range == NULL || !hm_range_on_host(range))
        return CUDA_ERROR_INVALID_VALUE;
    *flags = range->flags;
    return CUDA_SUCCESS;
}
