/* Arrays and mipmapped arrays: what one takes is asked of a twin that has no memory. */
#include "physical.h"

#define ROW_BYTES 64     /* texels lie in groups of 64 bytes by 8 rows (H100, driver 580) */
#define ROWS 8           /* and so do the rows of arrays of one dimension */
#define TINY_BYTES 65536 /* no twin says less; the driver packs smaller ones into shared blocks */
#define SMALL_BYTES 1048576 /* larger ones take whole blocks */
#define LARGEST_TEXEL 4

static uint64_t
times(uint64_t a, uint64_t b)
{
    uint64_t product;

    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static uint64_t
at_least_one(uint64_t extent)
{
    return extent > 0 ? extent : 1;
}

/* Bytes of a channel; 0: planar or compressed, so that only the driver can tell. */
static uint64_t
channel_bytes(CUarray_format format)
{
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        return 4;
    default:
        return 0;
    }
}

static uint64_t
round_up(uint64_t value, uint64_t step)
{
    return value > UINT64_MAX - step ? value : (value + step - 1) / step * step;
}

/* What the shape comes to by our own reckoning, all levels together. */
static uint64_t
reckon(const CUDA_ARRAY3D_DESCRIPTOR_v2 *shape, uint64_t texel_bytes, unsigned int levels)
{
    uint64_t width = times(times(at_least_one(shape->Width), shape->NumChannels), texel_bytes);
    uint64_t layer = times(round_up(width, ROW_BYTES), round_up(at_least_one(shape->Height), ROWS));
    uint64_t bytes = times(layer, at_least_one(shape->Depth));

    return levels > 1 ? times(bytes, 2) : bytes; /* each level is at most half of the one before */
}

static uint64_t
array_twin(CUDA_ARRAY3D_DESCRIPTOR_v2 shape, CUdevice device)
{
    CUDA_ARRAY_MEMORY_REQUIREMENTS need = {0};
    CUarray twin;

    shape.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
    if (REAL(cuArray3DCreate_v2(&twin, &shape)) != CUDA_SUCCESS)
        return 0;
    if (REAL(cuArrayGetMemoryRequirements(&need, twin, device)) != CUDA_SUCCESS)
        need.size = 0;
    REAL(cuArrayDestroy(twin));
    return need.size;
}

static uint64_t
mipmap_twin(CUDA_ARRAY3D_DESCRIPTOR_v2 shape, unsigned int levels, CUdevice device)
{
    CUDA_ARRAY_MEMORY_REQUIREMENTS need = {0};
    CUmipmappedArray twin;

    shape.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
    if (REAL(cuMipmappedArrayCreate(&twin, &shape, levels)) != CUDA_SUCCESS)
        return 0;
    if (REAL(cuMipmappedArrayGetMemoryRequirements(&need, twin, device)) != CUDA_SUCCESS)
        need.size = 0;
    REAL(cuMipmappedArrayDestroy(twin));
    return need.size;
}

/* What an array (levels 0) or mipmap takes of the card. */
static uint64_t
array_bytes(const CUDA_ARRAY3D_DESCRIPTOR_v2 *shape, unsigned int levels, int device)
{
    uint64_t texel_bytes = channel_bytes(shape->Format);
    uint64_t bytes = reckon(shape, texel_bytes, levels), told;

    if (texel_bytes > 0 && bytes <= TINY_BYTES)
        return bytes;
    told = levels > 0 ? mipmap_twin(*shape, levels, hm_device_handle(device))
                      : array_twin(*shape, hm_device_handle(device));
    if (told > 0)
        bytes = told;
    else if (texel_bytes == 0)
        bytes = reckon(shape, LARGEST_TEXEL, levels);
    return bytes > SMALL_BYTES ? hm_whole_blocks(bytes) : bytes;
}

/* Sparse and deferred arrays have no memory of their own: cuMemMapArrayAsync gives them some. */
static bool
reserve_array(struct hm_charge *charge, const CUDA_ARRAY3D_DESCRIPTOR_v2 *shape,
              unsigned int levels)
{
    const unsigned int without = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;
    int device = (shape->Flags & without) == 0 ? hm_device_current() : -1;

    return hm_quota_reserve(charge, HM_ARRAY, device,
                            device >= 0 ? array_bytes(shape, levels, device) : 0);
}

static CUresult
settle_array(struct hm_charge *charge, const CUarray *array, CUresult result)
{
    return hm_quota_settle(charge, HM_ARRAY_HANDLE, result == CUDA_SUCCESS ? (uintptr_t)*array : 0,
                           true, result);
}

static const CUDA_ARRAY3D_DESCRIPTOR_v2 nothing;

/* The older descriptors have the same field names in other types. */
#define SHAPE(descriptor, depth, flags)                                               \
    ({                                                                                \
        __auto_type from = descriptor;                                                \
        from == NULL ? nothing                                                        \
                     : (CUDA_ARRAY3D_DESCRIPTOR_v2){.Width = from->Width,             \
                                                    .Height = from->Height,           \
                                                    .Depth = depth,                   \
                                                    .Format = from->Format,           \
                                                    .NumChannels = from->NumChannels, \
                                                    .Flags = flags};                  \
    })

HM_HOOK CUresult
cuArrayCreate(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR_v1 *pAllocateArray)
{
    CUDA_ARRAY3D_DESCRIPTOR_v2 shape = SHAPE(pAllocateArray, 0, 0);
    struct hm_charge charge;

    if (!reserve_array(&charge, &shape, 0))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle_array(&charge, pHandle, REAL(cuArrayCreate(pHandle, pAllocateArray)));
}

HM_HOOK CUresult
cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR_v2 *pAllocateArray)
{
    CUDA_ARRAY3D_DESCRIPTOR_v2 shape = SHAPE(pAllocateArray, 0, 0);
    struct hm_charge charge;

    if (!reserve_array(&charge, &shape, 0))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle_array(&charge, pHandle, REAL(cuArrayCreate_v2(pHandle, pAllocateArray)));
}

HM_HOOK CUresult
cuArray3DCreate(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR_v1 *pAllocateArray)
{
    CUDA_ARRAY3D_DESCRIPTOR_v2 shape = SHAPE(pAllocateArray, from->Depth, from->Flags);
    struct hm_charge charge;

    if (!reserve_array(&charge, &shape, 0))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle_array(&charge, pHandle, REAL(cuArray3DCreate(pHandle, pAllocateArray)));
}

HM_HOOK CUresult
cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR_v2 *pAllocateArray)
{
    struct hm_charge charge;

    if (!reserve_array(&charge, pAllocateArray != NULL ? pAllocateArray : &nothing, 0))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle_array(&charge, pHandle, REAL(cuArray3DCreate_v2(pHandle, pAllocateArray)));
}

HM_HOOK CUresult
cuMipmappedArrayCreate(CUmipmappedArray *pHandle,
                       const CUDA_ARRAY3D_DESCRIPTOR_v2 *pMipmappedArrayDesc,
                       unsigned int numMipmapLevels)
{
    struct hm_charge charge;
    CUresult result;

    if (!reserve_array(&charge, pMipmappedArrayDesc != NULL ? pMipmappedArrayDesc : &nothing,
                       numMipmapLevels > 0 ? numMipmapLevels : 1))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuMipmappedArrayCreate(pHandle, pMipmappedArrayDesc, numMipmapLevels));
    return hm_quota_settle(&charge, HM_MIPMAP, result == CUDA_SUCCESS ? (uintptr_t)*pHandle : 0,
                           true, result);
}

HM_HOOK CUresult
cuArrayDestroy(CUarray hArray)
{
    struct hm_object object;
    bool known = hm_active() && hm_object_take(HM_ARRAY_HANDLE, (uintptr_t)hArray, &object);
    CUresult result = hm_object_freed(known, &object, REAL(cuArrayDestroy(hArray)));

    if (result == CUDA_SUCCESS)
        hm_physical_untile(hArray);
    return result;
}

HM_HOOK CUresult
cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray)
{
    struct hm_object object;
    bool known = hm_active() && hm_object_take(HM_MIPMAP, (uintptr_t)hMipmappedArray, &object);
    CUresult result =
        hm_object_freed(known, &object, REAL(cuMipmappedArrayDestroy(hMipmappedArray)));

    if (result == CUDA_SUCCESS)
        hm_physical_untile(hMipmappedArray);
    return result;
}
