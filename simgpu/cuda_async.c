#include "cuda_capture.h"
#include "cuda_memory.h"
#include "cuda_pool.h"

/* In a capture an allocation becomes a node, and its memory the graph's. */
static CUresult
capture_alloc(struct hm_stream *stream, const struct hm_pool *pool, size_t bytes,
              CUdeviceptr *address)
{
    struct hm_graph_memory *memory;
    struct hm_node *node;
    CUresult result = hm_graph_memory_new(pool->card, bytes, &memory);

    if (result != CUDA_SUCCESS)
        return result;
    node = hm_node_new(stream->capture->graph, CU_GRAPH_NODE_TYPE_MEM_ALLOC);
    node->op = (struct hm_op){.kind = HM_OP_GRAPH_ALLOC, .memory = memory};
    node->alloc.poolProps = pool->props;
    node->alloc.bytesize = bytes;
    node->alloc.dptr = memory->address;
    hm_capture_append(stream, node);
    *address = memory->address;
    return CUDA_SUCCESS;
}

static CUresult
alloc(struct hm_stream *stream, struct hm_pool *pool, size_t bytes, CUdeviceptr *address)
{
    CUresult result = hm_capture_check(stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (address == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (stream->capture != NULL)
        return capture_alloc(stream, pool, bytes, address);
    hm_streams_pump(false);
    return hm_pool_alloc(pool, bytes, address);
}

HM_EXPORT CUresult
cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    return alloc(stream, hm_pool_current(stream->ctx->device), bytes, address);
}

HM_EXPORT CUresult
cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool pool_handle,
                        CUstream handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_pool *pool = hm_pool_find(pool_handle);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (pool == NULL || pool->imported)
        return CUDA_ERROR_INVALID_VALUE;
    return alloc(stream, pool, bytes, address);
}

static CUresult
free_async(struct hm_stream *stream, CUdeviceptr address)
{
    const struct hm_range *range = hm_range_at(address);
    struct hm_op op = {.kind = HM_OP_FREE, .address = address};

    if (range == NULL || range->address != address)
        return CUDA_ERROR_INVALID_VALUE;
    switch (range->kind) {
    case HM_MEMORY_POOL:
        /* Memory from outside can't be freed by a graph. */
        return stream->capture != NULL ? CUDA_ERROR_INVALID_VALUE
                                       : hm_stream_add(stream, &op, CU_GRAPH_NODE_TYPE_EMPTY);
    case HM_MEMORY_GRAPH:
        op.kind = HM_OP_GRAPH_FREE;
        op.memory = range->owner;
        if (stream->capture == NULL && !op.memory->in_use)
            return CUDA_ERROR_INVALID_VALUE;
        hm_graph_memory_hold(op.memory);
        return hm_stream_add(stream, &op, CU_GRAPH_NODE_TYPE_MEM_FREE);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

HM_EXPORT CUresult
cuMemFreeAsync(CUdeviceptr address, CUstream handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result == CUDA_SUCCESS)
        result = hm_capture_check(stream);
    if (result != CUDA_SUCCESS || address == 0)
        return result;
    return free_async(stream, address);
}
