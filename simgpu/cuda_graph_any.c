#include "cuda_copy.h"
#include "cuda_graph.h"
#include "cuda_handle.h"

/* cuGraphAddNode: one call for nodes of every type. */

static CUresult
set_kernel(struct hm_node *node, const CUDA_KERNEL_NODE_PARAMS_v3 *params)
{
    CUDA_KERNEL_NODE_PARAMS kernel = {
        .func = params->func,
        .gridDimX = params->gridDimX,
        .gridDimY = params->gridDimY,
        .gridDimZ = params->gridDimZ,
        .blockDimX = params->blockDimX,
        .blockDimY = params->blockDimY,
        .blockDimZ = params->blockDimZ,
        .sharedMemBytes = params->sharedMemBytes,
        .kernelParams = params->kernelParams,
        .extra = params->extra,
        .kern = params->kern,
        .ctx = params->ctx,
    };

    return hm_node_set_kernel(node, &kernel);
}

static CUresult
set_memset(struct hm_node *node, const CUDA_MEMSET_NODE_PARAMS_v2 *params)
{
    CUDA_MEMSET_NODE_PARAMS set = {
        .dst = params->dst,
        .pitch = params->pitch,
        .value = params->value,
        .elementSize = params->elementSize,
        .width = params->width,
        .height = params->height,
    };

    return hm_set_prepare(&set, &node->op);
}

static CUresult
set_host(struct hm_node *node, const CUDA_HOST_NODE_PARAMS_v2 *params)
{
    node->op = (struct hm_op){.kind = HM_OP_HOST, .host = {params->fn, params->userData}};
    return params->fn != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult
set_child(struct hm_node *node, CUgraph handle)
{
    const struct hm_graph *child = HM_HANDLE(HM_GRAPH, handle);

    if (child == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node->child = hm_graph_clone(child);
    return CUDA_SUCCESS;
}

static CUresult
set_event(struct hm_node *node, CUevent event)
{
    node->event = event;
    return HM_HANDLE(HM_EVENT, event) != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult
set_alloc(struct hm_node *node, CUDA_MEM_ALLOC_NODE_PARAMS_v2 *params)
{
    CUDA_MEM_ALLOC_NODE_PARAMS alloc = {
        .poolProps = params->poolProps,
        .accessDescs = params->accessDescs,
        .accessDescCount = params->accessDescCount,
        .bytesize = params->bytesize,
    };
    CUresult result = hm_node_set_alloc(node, &alloc);

    params->dptr = alloc.dptr;
    return result;
}

static CUresult
set_any(struct hm_node *node, CUgraphNodeParams *params)
{
    switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return set_kernel(node, &params->kernel);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return hm_node_set_copy(node, &params->memcpy.copyParams);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return set_memset(node, &params->memset);
    case CU_GRAPH_NODE_TYPE_HOST:
        return set_host(node, &params->host);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return set_child(node, params->graph.graph);
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return set_event(node, params->eventWait.event);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return set_event(node, params->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return set_alloc(node, &params->alloc);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        return hm_node_set_free(node, params->free.dptr);
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

static CUresult
add(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies, size_t count,
    CUgraphNodeParams *params)
{
    struct hm_node *node;

    if (handle == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, params->type, dependencies, count);
    return node == NULL ? CUDA_ERROR_INVALID_VALUE
                        : hm_node_finish(node, set_any(node, params), handle);
}

HM_EXPORT CUresult
cuGraphAddNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies, size_t count,
               CUgraphNodeParams *params)
{
    HM_ENTER(HM_CURRENT);
    return add(handle, graph, dependencies, count, params);
}

HM_EXPORT CUresult
cuGraphAddNode_v2(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                  const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *params)
{
    HM_ENTER(HM_CURRENT);
    (void)edges;
    return add(handle, graph, dependencies, count, params);
}
