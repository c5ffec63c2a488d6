#include "cuda_array.h"

#include <stdlib.h>

#include "cuda_capture.h"
#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_object.h"

#define ROW_ALIGNMENT 512
#define ROWS_ALIGNMENT 8
#define ARRAY_ALIGNMENT 65536

static size_t
element_bytes(CUarray_format format)
{
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    default:
        return 4;
    }
}

static size_t
row_bytes(const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    return hm_round_up(descriptor->Width * descriptor->NumChannels *
                           element_bytes(descriptor->Format),
                       ROW_ALIGNMENT);
}

static size_t
layer_rows(const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    return descriptor->Height == 0 ? 1 : hm_round_up(descriptor->Height, ROWS_ALIGNMENT);
}

/* Rows and layers padded as a tiled layout would. */
static uint64_t
array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    uint64_t layers = descriptor->Depth == 0 ? 1 : descriptor->Depth;

    return hm_round_up(row_bytes(descriptor) * layer_rows(descriptor) * layers, ARRAY_ALIGNMENT);
}

static bool
valid(const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    return descriptor->Width > 0 && descriptor->Width < (1u << 28) &&
           descriptor->Height < (1u << 28) && descriptor->Depth < (1u << 20) &&
           (descriptor->NumChannels == 1 || descriptor->NumChannels == 2 ||
            descriptor->NumChannels == 4);
}

static struct hm_array *
array_new(struct hm_context *ctx, const CUDA_ARRAY3D_DESCRIPTOR *descriptor,
          struct hm_context *owner)
{
    struct hm_array *array = hm_allocate(sizeof(*array));

    array->ctx = ctx;
    array->descriptor = *descriptor;
    array->pitch = row_bytes(descriptor);
    array->bytes = array_bytes(descriptor);
    array->handle = (CUarray)(uintptr_t)hm_handle_make(HM_ARRAY, array, owner);
    return array;
}

void
hm_array_delete(struct hm_array *array)
{
    if (array->range != NULL)
        hm_memory_delete(array->range);
    hm_handle_drop((uint64_t)(uintptr_t)array->handle);
    free(array);
}

/* Width in bytes; a dimension of 0 counts as 1. */
bool
hm_array_holds(CUarray handle, const size_t from[3], const size_t extent[3])
{
    const struct hm_array *array = HM_HANDLE(HM_ARRAY, handle);
    size_t most[3];

    if (array == NULL)
        return false;
    most[0] = array->descriptor.Width * array->descriptor.NumChannels *
              element_bytes(array->descriptor.Format);
    most[1] = array->descriptor.Height == 0 ? 1 : array->descriptor.Height;
    most[2] = array->descriptor.Depth == 0 ? 1 : array->descriptor.Depth;
    for (int i = 0; i < 3; i++) {
        if (extent[i] > most[i] || from[i] > most[i] - extent[i])
            return false;
    }
    return true;
}

char *
hm_array_data(CUarray handle, size_t *pitch, size_t *slice)
{
    const struct hm_array *array = HM_HANDLE(HM_ARRAY, handle);

    if (array == NULL || array->data == 0)
        return NULL;
    *pitch = array->pitch;
    *slice = array->pitch * layer_rows(&array->descriptor);
    return (char *)array->data;
}

static CUresult
create(struct hm_context *ctx, CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    CUresult result = hm_capture_unsafe();
    struct hm_array *array;

    if (handle == NULL || !valid(descriptor))
        return CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    array = array_new(ctx, descriptor, ctx);
    if ((descriptor->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) == 0) {
        result = hm_memory_new(ctx, HM_MEMORY_DEVICE, array->bytes, &array->range);
        if (result != CUDA_SUCCESS) {
            hm_array_delete(array);
            return result;
        }
        array->data = array->range->address;
    }
    *handle = array->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuArray3DCreate_v2(CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    HM_ENTER(HM_CURRENT);
    return descriptor == NULL ? CUDA_ERROR_INVALID_VALUE : create(call.ctx, handle, descriptor);
}

HM_EXPORT CUresult
cuArrayCreate_v2(CUarray *handle, const CUDA_ARRAY_DESCRIPTOR *descriptor)
{
    HM_ENTER(HM_CURRENT);
    CUDA_ARRAY3D_DESCRIPTOR full;

    if (descriptor == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    full = (CUDA_ARRAY3D_DESCRIPTOR){
        .Width = descriptor->Width,
        .Height = descriptor->Height,
        .Format = descriptor->Format,
        .NumChannels = descriptor->NumChannels,
    };
    return create(call.ctx, handle, &full);
}

HM_EXPORT CUresult
cuArrayDestroy(CUarray handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_array *array = HM_HANDLE(HM_ARRAY, handle);

    if (array == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_context_drain(array->ctx);
    hm_array_delete(array);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *descriptor, CUarray handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_array *array = HM_HANDLE(HM_ARRAY, handle);

    if (array == NULL || descriptor == NULL)
        return array == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *descriptor = array->descriptor;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *descriptor, CUarray handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_array *array = HM_HANDLE(HM_ARRAY, handle);

    if (array == NULL || descriptor == NULL)
        return array == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *descriptor = (CUDA_ARRAY_DESCRIPTOR){
        .Width = array->descriptor.Width,
        .Height = array->descriptor.Height,
        .Format = array->descriptor.Format,
        .NumChannels = array->descriptor.NumChannels,
    };
    return CUDA_SUCCESS;
}

static CUresult
requirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *need, const CUDA_ARRAY3D_DESCRIPTOR *descriptor,
             uint64_t bytes, CUdevice device)
{
    if (need == NULL || (descriptor->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *need = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = bytes, .alignment = ARRAY_ALIGNMENT};
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *need, CUarray handle, CUdevice device)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_array *array = HM_HANDLE(HM_ARRAY, handle);

    if (array == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    return requirements(need, &array->descriptor, array->bytes, device);
}

static CUDA_ARRAY3D_DESCRIPTOR
level_of(const CUDA_ARRAY3D_DESCRIPTOR *descriptor, unsigned int level)
{
    CUDA_ARRAY3D_DESCRIPTOR smaller = *descriptor;

    smaller.Width = smaller.Width >> level > 0 ? smaller.Width >> level : 1;
    if (smaller.Height > 0)
        smaller.Height = smaller.Height >> level > 0 ? smaller.Height >> level : 1;
    if (smaller.Depth > 0 && (smaller.Flags & CUDA_ARRAY3D_LAYERED) == 0)
        smaller.Depth = smaller.Depth >> level > 0 ? smaller.Depth >> level : 1;
    return smaller;
}

void
hm_mipmap_delete(struct hm_mipmap *mipmap)
{
    for (unsigned int i = 0; i < mipmap->levels; i++)
        hm_array_delete(mipmap->level[i]);
    if (mipmap->range != NULL)
        hm_memory_delete(mipmap->range);
    hm_handle_drop((uint64_t)(uintptr_t)mipmap->handle);
    free(mipmap);
}

static void
make_levels(struct hm_mipmap *mipmap, unsigned int levels)
{
    for (; mipmap->levels < levels; mipmap->levels++) {
        CUDA_ARRAY3D_DESCRIPTOR smaller = level_of(&mipmap->descriptor, mipmap->levels);

        mipmap->level[mipmap->levels] = array_new(mipmap->ctx, &smaller, NULL);
        mipmap->bytes += mipmap->level[mipmap->levels]->bytes;
    }
}

static void
place_levels(struct hm_mipmap *mipmap)
{
    uint64_t address = mipmap->range->address;

    for (unsigned int i = 0; i < mipmap->levels; i++) {
        mipmap->level[i]->data = address;
        address += mipmap->level[i]->bytes;
    }
}

HM_EXPORT CUresult
cuMipmappedArrayCreate(CUmipmappedArray *handle, const CUDA_ARRAY3D_DESCRIPTOR *descriptor,
                       unsigned int levels)
{
    HM_ENTER(HM_CURRENT);
    struct hm_mipmap *mipmap;
    CUresult result;

    if (handle == NULL || descriptor == NULL || !valid(descriptor) || levels == 0)
        return CUDA_ERROR_INVALID_VALUE;
    mipmap = hm_allocate(sizeof(*mipmap));
    mipmap->ctx = call.ctx;
    mipmap->descriptor = *descriptor;
    make_levels(mipmap, levels < HM_COUNT(mipmap->level) ? levels : HM_COUNT(mipmap->level));
    mipmap->handle = (CUmipmappedArray)(uintptr_t)hm_handle_make(HM_MIPMAP, mipmap, call.ctx);
    if ((descriptor->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) == 0) {
        result = hm_memory_new(call.ctx, HM_MEMORY_DEVICE, mipmap->bytes, &mipmap->range);
        if (result != CUDA_SUCCESS) {
            hm_mipmap_delete(mipmap);
            return result;
        }
        place_levels(mipmap);
    }
    *handle = mipmap->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMipmappedArrayDestroy(CUmipmappedArray handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_mipmap *mipmap = HM_HANDLE(HM_MIPMAP, handle);

    if (mipmap == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_context_drain(mipmap->ctx);
    hm_mipmap_delete(mipmap);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMipmappedArrayGetLevel(CUarray *array, CUmipmappedArray handle, unsigned int level)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_mipmap *mipmap = HM_HANDLE(HM_MIPMAP, handle);

    if (mipmap == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (array == NULL || level >= mipmap->levels)
        return CUDA_ERROR_INVALID_VALUE;
    *array = mipmap->level[level]->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *need, CUmipmappedArray handle,
                                      CUdevice device)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_mipmap *mipmap = HM_HANDLE(HM_MIPMAP, handle);

    if (mipmap == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    return requirements(need, &mipmap->descriptor, mipmap->bytes, device);
}
