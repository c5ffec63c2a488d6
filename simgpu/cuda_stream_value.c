#include "cuda_capture.h"

/* Stream memory operations: the card writes a number, or a stream waits for one. */

static bool
valid(const struct hm_op *op)
{
    return op->value.address != 0 && op->value.address % (op->value.wide ? 8 : 4) == 0;
}

static CUresult
add_value(const struct hm_call *call, CUstream handle, const struct hm_op *op)
{
    struct hm_stream *stream;
    CUresult result = hm_stream_find(call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (!valid(op))
        return CUDA_ERROR_INVALID_VALUE;
    return hm_stream_add(stream, op, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP);
}

HM_EXPORT CUresult
cuStreamWriteValue32_v2(CUstream handle, CUdeviceptr address, cuuint32_t value, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_op op = {.kind = HM_OP_WRITE_VALUE, .value = {address, value, flags, false}};

    return add_value(&call, handle, &op);
}

HM_EXPORT CUresult
cuStreamWriteValue64_v2(CUstream handle, CUdeviceptr address, cuuint64_t value, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_op op = {.kind = HM_OP_WRITE_VALUE, .value = {address, value, flags, true}};

    return add_value(&call, handle, &op);
}

HM_EXPORT CUresult
cuStreamWaitValue32_v2(CUstream handle, CUdeviceptr address, cuuint32_t value, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_op op = {.kind = HM_OP_WAIT_VALUE, .value = {address, value, flags, false}};

    return add_value(&call, handle, &op);
}

HM_EXPORT CUresult
cuStreamWaitValue64_v2(CUstream handle, CUdeviceptr address, cuuint64_t value, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_op op = {.kind = HM_OP_WAIT_VALUE, .value = {address, value, flags, true}};

    return add_value(&call, handle, &op);
}

static CUresult
from_batch(const CUstreamBatchMemOpParams *params, struct hm_op *op)
{
    switch (params->operation) {
    case CU_STREAM_MEM_OP_WAIT_VALUE_32:
    case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        *op = (struct hm_op){.kind = HM_OP_WAIT_VALUE,
                             .value = {params->waitValue.address, params->waitValue.value64,
                                       params->waitValue.flags, false}};
        op->value.wide = params->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
        return valid(op) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_STREAM_MEM_OP_WRITE_VALUE_32:
    case CU_STREAM_MEM_OP_WRITE_VALUE_64:
        *op = (struct hm_op){.kind = HM_OP_WRITE_VALUE,
                             .value = {params->writeValue.address, params->writeValue.value64,
                                       params->writeValue.flags, false}};
        op->value.wide = params->operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
        return valid(op) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_STREAM_MEM_OP_BARRIER:
    case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
        *op = (struct hm_op){.kind = HM_OP_WORK};
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

HM_EXPORT CUresult
cuStreamBatchMemOp_v2(CUstream handle, unsigned int count, CUstreamBatchMemOpParams *params,
                      unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    struct hm_op op;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result == CUDA_SUCCESS && (params == NULL || flags != 0 || count > 256))
        result = CUDA_ERROR_INVALID_VALUE;
    for (unsigned int i = 0; i < count && result == CUDA_SUCCESS; i++)
        result = from_batch(&params[i], &op);
    for (unsigned int i = 0; i < count && result == CUDA_SUCCESS; i++) {
        from_batch(&params[i], &op);
        result = hm_stream_add(stream, &op, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP);
    }
    return result;
}
