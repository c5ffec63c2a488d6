#include "cuda_range.h"

#include <stdlib.h>
#include <unistd.h>

#include "cuda_context.h"
#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_object.h"
#include "cuda_space.h"

/* Memory of another API. It takes its size on the card as long as it is imported. */
struct hm_external {
    CUexternalMemory handle;
    struct hm_context *ctx;
    int fd; /* ours now, as with the driver */
    uint64_t bytes;
};

void
hm_external_delete(struct hm_external *external)
{
    hm_blocks_give(external->ctx->card, hm_blocks(external->bytes));
    close(external->fd);
    hm_handle_drop((uint64_t)(uintptr_t)external->handle);
    free(external);
}

HM_EXPORT CUresult
cuImportExternalMemory(CUexternalMemory *handle, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *descriptor)
{
    HM_ENTER(HM_CURRENT);
    struct hm_external *external;

    if (handle == NULL || descriptor == NULL || descriptor->size == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (descriptor->type != CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!hm_blocks_take(call.ctx->card, hm_blocks(descriptor->size)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    external = hm_allocate(sizeof(*external));
    external->ctx = call.ctx;
    external->fd = descriptor->handle.fd;
    external->bytes = descriptor->size;
    external->handle = (CUexternalMemory)(uintptr_t)hm_handle_make(HM_EXTERNAL, external, call.ctx);
    *handle = external->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDestroyExternalMemory(CUexternalMemory handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_external *external = HM_HANDLE(HM_EXTERNAL, handle);

    if (external == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_external_delete(external);
    return CUDA_SUCCESS;
}

/* The buffer has an address of its own; it shows no data of the other API. */
HM_EXPORT CUresult
cuExternalMemoryGetMappedBuffer(CUdeviceptr *address, CUexternalMemory handle,
                                const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *descriptor)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_external *external = HM_HANDLE(HM_EXTERNAL, handle);
    struct hm_range range = {.kind = HM_MEMORY_EXTERNAL, .ctx = call.ctx, .card = call.ctx->card};

    if (external == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (address == NULL || descriptor == NULL || descriptor->size == 0 ||
        descriptor->size > external->bytes ||
        descriptor->offset > external->bytes - descriptor->size)
        return CUDA_ERROR_INVALID_VALUE;
    range.bytes = descriptor->size;
    range.address = hm_space_take(0, range.bytes, true);
    if (range.address == 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    hm_range_add(&range);
    *address = range.address;
    return CUDA_SUCCESS;
}
