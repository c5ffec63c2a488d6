#include "cuda_capture.h"
#include "cuda_copy.h"

#define SETUP_NS 1500
#define BYTES_PER_NS 2500

CUresult
hm_set_prepare(const CUDA_MEMSET_NODE_PARAMS *set, struct hm_op *op)
{
    const struct hm_range *range = hm_range_at(set->dst);
    uint64_t row = set->width * set->elementSize;

    *op = (struct hm_op){.kind = HM_OP_SET, .set = *set};
    if (set->width == 0 || set->height == 0) {
        op->kind = HM_OP_WORK;
        return CUDA_SUCCESS;
    }
    if (range == NULL || !hm_range_usable(range) || set->dst % set->elementSize != 0 ||
        range->address + range->bytes - set->dst < set->pitch * (set->height - 1) + row)
        return CUDA_ERROR_INVALID_VALUE;
    op->length_ns = SETUP_NS + (int64_t)(row * set->height / BYTES_PER_NS);
    return CUDA_SUCCESS;
}

static CUresult
add(const struct hm_call *call, CUstream handle, const CUDA_MEMSET_NODE_PARAMS *set)
{
    struct hm_stream *stream;
    struct hm_op op;
    CUresult result = hm_stream_find(call, handle, &stream);

    if (result == CUDA_SUCCESS)
        result = hm_set_prepare(set, &op);
    if (result != CUDA_SUCCESS)
        return result;
    return hm_stream_add(stream, &op, CU_GRAPH_NODE_TYPE_MEMSET);
}

/* Memsets do not wait for the host, whatever their name says. */
#define SET(address, row_pitch, number, bytes, columns, rows) \
    (&(CUDA_MEMSET_NODE_PARAMS){.dst = (address),             \
                                .pitch = (row_pitch),         \
                                .value = (number),            \
                                .elementSize = (bytes),       \
                                .width = (columns),           \
                                .height = (rows)})

HM_EXPORT CUresult
cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, NULL, SET(to, count, value, 1, count, 1));
}

HM_EXPORT CUresult
cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, NULL, SET(to, 2 * count, value, 2, count, 1));
}

HM_EXPORT CUresult
cuMemsetD32_v2(CUdeviceptr to, unsigned int value, size_t count)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, NULL, SET(to, 4 * count, value, 4, count, 1));
}

HM_EXPORT CUresult
cuMemsetD2D8_v2(CUdeviceptr to, size_t pitch, unsigned char value, size_t width, size_t height)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, NULL, SET(to, pitch, value, 1, width, height));
}

HM_EXPORT CUresult
cuMemsetD2D16_v2(CUdeviceptr to, size_t pitch, unsigned short value, size_t width, size_t height)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, NULL, SET(to, pitch, value, 2, width, height));
}

HM_EXPORT CUresult
cuMemsetD2D32_v2(CUdeviceptr to, size_t pitch, unsigned int value, size_t width, size_t height)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, NULL, SET(to, pitch, value, 4, width, height));
}

HM_EXPORT CUresult
cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, stream, SET(to, count, value, 1, count, 1));
}

HM_EXPORT CUresult
cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, stream, SET(to, 2 * count, value, 2, count, 1));
}

HM_EXPORT CUresult
cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, stream, SET(to, 4 * count, value, 4, count, 1));
}

HM_EXPORT CUresult
cuMemsetD2D8Async(CUdeviceptr to, size_t pitch, unsigned char value, size_t width, size_t height,
                  CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, stream, SET(to, pitch, value, 1, width, height));
}

HM_EXPORT CUresult
cuMemsetD2D16Async(CUdeviceptr to, size_t pitch, unsigned short value, size_t width, size_t height,
                   CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, stream, SET(to, pitch, value, 2, width, height));
}

HM_EXPORT CUresult
cuMemsetD2D32Async(CUdeviceptr to, size_t pitch, unsigned int value, size_t width, size_t height,
                   CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return add(&call, stream, SET(to, pitch, value, 4, width, height));
}
