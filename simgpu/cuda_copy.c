#include "cuda_copy.h"

#include <string.h>

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
fits(CUmemorytype type, CUdeviceptr address, size_t pitch, const CUDA_MEMCPY3D_PEER *copy)
{
    const struct hm_range *range;
    uint64_t extent = pitch * (copy->Height - 1) + copy->WidthInBytes;

    if (type != CU_MEMORYTYPE_DEVICE && type != CU_MEMORYTYPE_UNIFIED)
        return true;
    range = hm_range_at(address);
    if (range == NULL)
        return type == CU_MEMORYTYPE_UNIFIED && address != 0;
    return hm_range_usable(range) && range->address + range->bytes - address >= extent;
}

CUresult
hm_copy_prepare(const CUDA_MEMCPY3D_PEER *copy, struct hm_op *op)
{
    *op = (struct hm_op){.kind = HM_OP_COPY, .copy = *copy};
    if (copy->WidthInBytes == 0 || copy->Height == 0 || copy->Depth == 0) {
        op->kind = HM_OP_WORK;
        return CUDA_SUCCESS;
    }
    if (!fits(copy->srcMemoryType, copy->srcDevice, copy->srcPitch, copy) ||
        !fits(copy->dstMemoryType, copy->dstDevice, copy->dstPitch, copy))
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

static CUresult
add(const struct hm_call *call, CUstream handle, const CUDA_MEMCPY3D_PEER *copy, bool wait)
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

    return add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(UNIFIED, to, UNIFIED, from, bytes);

    return add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, HOST, (uint64_t)from, bytes);

    return add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, HOST, (uint64_t)from, bytes);

    return add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(HOST, (uint64_t)to, DEVICE, from, bytes);

    return add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(HOST, (uint64_t)to, DEVICE, from, bytes);

    return add(&call, stream, &copy, false);
}

/* A copy within the card does not wait for the host. */
HM_EXPORT CUresult
cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    return add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    return add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyPeer(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx, size_t bytes)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    if (hm_context_find(to_ctx) == NULL || hm_context_find(from_ctx) == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    return add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx,
                  size_t bytes, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = linear(DEVICE, to, DEVICE, from, bytes);

    if (hm_context_find(to_ctx) == NULL || hm_context_find(from_ctx) == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    return add(&call, stream, &copy, false);
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
    return add(call, stream, &full, wait);
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
    return add(call, stream, &full, wait);
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
    return copy == NULL ? CUDA_ERROR_INVALID_VALUE : add(&call, NULL, copy, true);
}

HM_EXPORT CUresult
cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *copy, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return copy == NULL ? CUDA_ERROR_INVALID_VALUE : add(&call, stream, copy, false);
}
