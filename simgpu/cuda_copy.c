#include "cuda_copy.h"

#include "cuda_array.h"
#include "cuda_capture.h"

#define SETUP_NS 1500
#define BUS_BYTES_PER_NS 50
#define CARD_BYTES_PER_NS 1300

static bool
on_card(CUmemorytype type, CUdeviceptr address)
{
    const struct hm_range *range;

    if (type == CU_MEMORYTYPE_HOST)
        return false;
    if (type == CU_MEMORYTYPE_ARRAY)
        return true;
    range = hm_range_at(address);
    return range != NULL && !hm_range_on_host(range);
}

static int64_t
length_ns(const CUDA_MEMCPY3D_PEER *copy)
{
    uint64_t bytes = copy->WidthInBytes * copy->Height * copy->Depth;
    bool inside = on_card(copy->srcMemoryType, copy->srcDevice) &&
                  on_card(copy->dstMemoryType, copy->dstDevice);

    return SETUP_NS + (int64_t)(bytes / (inside ? CARD_BYTES_PER_NS : BUS_BYTES_PER_NS));
}

/* Device addresses are checked; with unified addressing any other one is the application's own. */
static bool
fits_range(CUmemorytype type, CUdeviceptr address, uint64_t extent)
{
    const struct hm_range *range = hm_range_at(address);

    if (range == NULL)
        return type == CU_MEMORYTYPE_UNIFIED && address != 0;
    return hm_range_usable(range) && range->address + range->bytes - address >= extent;
}

/* The bytes from the first to the last that a copy touches on one side, where it starts at `from`. */
static uint64_t
reach(const CUDA_MEMCPY3D_PEER *copy, const size_t from[3], size_t pitch, size_t height)
{
    return from[0] + copy->WidthInBytes + (from[1] + copy->Height - 1) * pitch +
           (from[2] + copy->Depth - 1) * pitch * height;
}

static bool
source_fits(const CUDA_MEMCPY3D_PEER *copy, const size_t extent[3])
{
    size_t from[3] = {copy->srcXInBytes, copy->srcY, copy->srcZ};

    if (copy->srcMemoryType == CU_MEMORYTYPE_ARRAY)
        return hm_array_holds(copy->srcArray, from, extent);
    return copy->srcMemoryType == CU_MEMORYTYPE_HOST ||
           fits_range(copy->srcMemoryType, copy->srcDevice,
                      reach(copy, from, copy->srcPitch, copy->srcHeight));
}

static bool
target_fits(const CUDA_MEMCPY3D_PEER *copy, const size_t extent[3])
{
    size_t from[3] = {copy->dstXInBytes, copy->dstY, copy->dstZ};

    if (copy->dstMemoryType == CU_MEMORYTYPE_ARRAY)
        return hm_array_holds(copy->dstArray, from, extent);
    return copy->dstMemoryType == CU_MEMORYTYPE_HOST ||
           fits_range(copy->dstMemoryType, copy->dstDevice,
                      reach(copy, from, copy->dstPitch, copy->dstHeight));
}

CUresult
hm_copy_prepare(const CUDA_MEMCPY3D_PEER *copy, struct hm_op *op)
{
    size_t extent[3] = {copy->WidthInBytes, copy->Height, copy->Depth};

    *op = (struct hm_op){.kind = HM_OP_COPY, .copy = *copy};
    if (copy->WidthInBytes == 0 || copy->Height == 0 || copy->Depth == 0) {
        op->kind = HM_OP_WORK;
        return CUDA_SUCCESS;
    }
    if (!source_fits(copy, extent) || !target_fits(copy, extent))
        return CUDA_ERROR_INVALID_VALUE;
    op->length_ns = length_ns(copy);
    return CUDA_SUCCESS;
}

static CUDA_MEMCPY3D_PEER
linear(CUmemorytype to_type, uint64_t to, CUmemorytype from_type, uint64_t from, size_t bytes)
{
    return (CUDA_MEMCPY3D_PEER){
        .srcMemoryType = from_type,
        .srcHost = (const void *)from,
        .srcDevice = from,
        .dstMemoryType = to_type,
        .dstHost = (void *)to,
        .dstDevice = to,
        .WidthInBytes = bytes,
        .Height = 1,
        .Depth = 1,
    };
}

CUresult
hm_copy_add(const struct hm_call *call, CUstream handle, const CUDA_MEMCPY3D_PEER *copy, bool wait)
{
    struct hm_stream *stream;
    struct hm_op op;
    CUresult result = hm_stream_find(call, handle, &stream);

    if (result == CUDA_SUCCESS)
        result = hm_copy_prepare(copy, &op);
    if (result == CUDA_SUCCESS && wait)
        result = stream->capture != NULL ? hm_capture_refuse(stream) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = hm_stream_add(stream, &op, CU_GRAPH_NODE_TYPE_MEMCPY);
    if (result == CUDA_SUCCESS && wait)
        hm_stream_drain(stream);
    return result;
}

#define DEVICE CU_MEMORYTYPE_DEVICE
#define HOST CU_MEMORYTYPE_HOST
#define UNIFIED CU_MEMORYTYPE_UNIFIED

HM_EXPORT CUresult
cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(UNIFIED, to, UNIFIED, from, bytes);

    return hm_copy_add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(UNIFIED, to, UNIFIED, from, bytes);

    return hm_copy_add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, HOST, (uint64_t)from, bytes);

    return hm_copy_add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, HOST, (uint64_t)from, bytes);

    return hm_copy_add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(HOST, (uint64_t)to, DEVICE, from, bytes);

    return hm_copy_add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(HOST, (uint64_t)to, DEVICE, from, bytes);

    return hm_copy_add(&call, stream, &copy, false);
}

/* A copy within the card does not wait for the host. */
HM_EXPORT CUresult
cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    return hm_copy_add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    return hm_copy_add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyPeer(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    if (hm_context_find(to_ctx) == NULL || hm_context_find(from_ctx) == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    return hm_copy_add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx,
                  size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    if (hm_context_find(to_ctx) == NULL || hm_context_find(from_ctx) == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    return hm_copy_add(&call, stream, &copy, false);
}

/* Only the first dimensions are CUDA_MEMCPY2D's. */
static CUDA_MEMCPY3D_PEER
from_2d(const CUDA_MEMCPY2D *copy)
{
    return (CUDA_MEMCPY3D_PEER){
        .srcXInBytes = copy->srcXInBytes,
        .srcY = copy->srcY,
        .srcMemoryType = copy->srcMemoryType,
        .srcHost = copy->srcHost,
        .srcDevice = copy->srcDevice,
        .srcArray = copy->srcArray,
        .srcPitch = copy->srcPitch != 0 ? copy->srcPitch : copy->WidthInBytes,
        .dstXInBytes = copy->dstXInBytes,
        .dstY = copy->dstY,
        .dstMemoryType = copy->dstMemoryType,
        .dstHost = copy->dstHost,
        .dstDevice = copy->dstDevice,
        .dstArray = copy->dstArray,
        .dstPitch = copy->dstPitch != 0 ? copy->dstPitch : copy->WidthInBytes,
        .WidthInBytes = copy->WidthInBytes,
        .Height = copy->Height,
        .Depth = 1,
    };
}

static CUresult
add_2d(const struct hm_call *call, CUstream stream, const CUDA_MEMCPY2D *copy, bool wait)
{
    CUDA_MEMCPY3D_PEER full;

    if (copy == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    full = from_2d(copy);
    return hm_copy_add(call, stream, &full, wait);
}

HM_EXPORT CUresult
cuMemcpy2D_v2(const CUDA_MEMCPY2D *copy)
{
    HM_ENTER(HM_CURRENT);
    return add_2d(&call, NULL, copy, true);
}

HM_EXPORT CUresult
cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *copy)
{
    HM_ENTER(HM_CURRENT);
    return add_2d(&call, NULL, copy, true);
}

HM_EXPORT CUresult
cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *copy, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add_2d(&call, stream, copy, false);
}

static CUresult
add_3d(const struct hm_call *call, CUstream stream, const CUDA_MEMCPY3D *copy, bool wait)
{
    CUDA_MEMCPY3D_PEER full;

    if (copy == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    full = hm_copy_from_3d(copy);
    return hm_copy_add(call, stream, &full, wait);
}

HM_EXPORT CUresult
cuMemcpy3D_v2(const CUDA_MEMCPY3D *copy)
{
    HM_ENTER(HM_CURRENT);
    return add_3d(&call, NULL, copy, true);
}

HM_EXPORT CUresult
cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *copy, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add_3d(&call, stream, copy, false);
}

HM_EXPORT CUresult
cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *copy)
{
    HM_ENTER(HM_CURRENT);
    return copy == NULL ? CUDA_ERROR_INVALID_VALUE : hm_copy_add(&call, NULL, copy, true);
}

HM_EXPORT CUresult
cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *copy, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return copy == NULL ? CUDA_ERROR_INVALID_VALUE : hm_copy_add(&call, stream, copy, false);
}
