#include "cuda_context.h"
#include "cuda_pool.h"

static CUmemorytype
memory_type(const struct hm_range *range)
{
    return hm_range_on_host(range) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
}

static CUdevice
ordinal(const struct hm_range *range)
{
    CUdevice device = 0;

    while (device < hm_driver.device_count && hm_driver.cards[device] != range->card)
        device++;
    return device;
}

static CUcontext
context(const struct hm_range *range)
{
    const struct hm_context *primary;

    if (range->ctx != NULL)
        return range->ctx->handle;
    primary = hm_primary(ordinal(range));
    return primary != NULL ? primary->handle : NULL;
}

/* Each attribute has a type of its own. */
static CUresult
get(void *data, CUpointer_attribute name, const struct hm_range *range, CUdeviceptr address)
{
    switch (name) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = context(range);
        break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned int *)data = memory_type(range);
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = address;
        break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(void **)data =
            hm_range_on_host(range) || range->kind == HM_MEMORY_MANAGED ? (void *)address : NULL;
        break;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        *(unsigned int *)data = range->sync_memops;
        break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)data = range->id;
        break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned int *)data = range->kind == HM_MEMORY_MANAGED;
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = ordinal(range);
        break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *(unsigned int *)data = range->kind == HM_MEMORY_DEVICE;
        break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = range->address;
        break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = range->bytes;
        break;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned int *)data = 1;
        break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *(CUmemoryPool *)data =
            range->kind == HM_MEMORY_POOL ? ((struct hm_pool *)range->owner)->handle : NULL;
        break;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuPointerGetAttribute(void *data, CUpointer_attribute name, CUdeviceptr address)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_range *range = hm_range_at(address);

    if (data == NULL || range == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return get(data, name, range, address);
}

/* For memory CUDA does not know this form answers success and zeros. */
static void
get_unknown(void *data, CUpointer_attribute name)
{
    switch (name) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(void **)data = NULL;
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = -2;
        break;
    default:
        *(unsigned int *)data = 0;
        break;
    }
}

HM_EXPORT CUresult
cuPointerGetAttributes(unsigned int count, CUpointer_attribute *names, void **data,
                       CUdeviceptr address)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_range *range = hm_range_at(address);
    CUresult result = CUDA_SUCCESS;

    if (count == 0 || names == NULL || data == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned int i = 0; i < count && result == CUDA_SUCCESS; i++) {
        if (range == NULL)
            get_unknown(data[i], names[i]);
        else
            result = get(data[i], names[i], range, address);
    }
    return result;
}

HM_EXPORT CUresult
cuPointerSetAttribute(const void *value, CUpointer_attribute name, CUdeviceptr address)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_range *range = hm_range_at(address);

    if (value == NULL || range == NULL || name != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
        return CUDA_ERROR_INVALID_VALUE;
    range->sync_memops = *(const unsigned int *)value != 0;
    return CUDA_SUCCESS;
}
