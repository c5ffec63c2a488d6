#include "cuda_copy.h"
#include "cuda_graph.h"
#include "cuda_handle.h"

struct hm_node *
hm_graph_add(CUgraph handle, CUgraphNodeType type, const CUgraphNode *dependencies, size_t count)
{
    struct hm_graph *graph = HM_HANDLE(HM_GRAPH, handle);
    struct hm_node *node;

    if (graph == NULL || (count > 0 && dependencies == NULL))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        const struct hm_node *on = HM_HANDLE(HM_NODE, dependencies[i]);

        if (on == NULL || on->graph != graph)
            return NULL;
    }
    node = hm_node_new(graph, type);
    for (size_t i = 0; i < count; i++)
        hm_node_depend(node, HM_HANDLE(HM_NODE, dependencies[i]));
    return node;
}

CUresult
hm_node_finish(struct hm_node *node, CUresult result, CUgraphNode *handle)
{
    if (result != CUDA_SUCCESS)
        hm_node_delete(node);
    else
        *handle = node->handle;
    return result;
}

static CUresult
add_kernel(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies, size_t count,
           const CUDA_KERNEL_NODE_PARAMS *params)
{
    struct hm_node *node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_KERNEL, dependencies, count);

    return node == NULL ? CUDA_ERROR_INVALID_VALUE
                        : hm_node_finish(node, hm_node_set_kernel(node, params), handle);
}

HM_EXPORT CUresult
cuGraphAddKernelNode_v2(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                        size_t count, const CUDA_KERNEL_NODE_PARAMS *params)
{
    HM_ENTER(HM_CURRENT);

    if (handle == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return add_kernel(handle, graph, dependencies, count, params);
}

CUresult
hm_node_set_copy(struct hm_node *node, const CUDA_MEMCPY3D *params)
{
    CUDA_MEMCPY3D_PEER copy = hm_copy_from_3d(params);

    return hm_copy_prepare(&copy, &node->op);
}

HM_EXPORT CUresult
cuGraphAddMemcpyNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                     size_t count, const CUDA_MEMCPY3D *params, CUcontext ctx)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node;

    if (handle == NULL || params == NULL || hm_context_find(ctx) == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_MEMCPY, dependencies, count);
    return node == NULL ? CUDA_ERROR_INVALID_VALUE
                        : hm_node_finish(node, hm_node_set_copy(node, params), handle);
}

HM_EXPORT CUresult
cuGraphAddMemsetNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                     size_t count, const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node;

    if (handle == NULL || params == NULL || hm_context_find(ctx) == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_MEMSET, dependencies, count);
    return node == NULL ? CUDA_ERROR_INVALID_VALUE
                        : hm_node_finish(node, hm_set_prepare(params, &node->op), handle);
}

HM_EXPORT CUresult
cuGraphAddHostNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                   size_t count, const CUDA_HOST_NODE_PARAMS *params)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_node *node;

    if (handle == NULL || params == NULL || params->fn == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_HOST, dependencies, count);
    if (node == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node->op = (struct hm_op){.kind = HM_OP_HOST, .host = {params->fn, params->userData}};
    return hm_node_finish(node, CUDA_SUCCESS, handle);
}

HM_EXPORT CUresult
cuGraphAddEmptyNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                    size_t count)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_node *node;

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_EMPTY, dependencies, count);
    return node == NULL ? CUDA_ERROR_INVALID_VALUE : hm_node_finish(node, CUDA_SUCCESS, handle);
}

HM_EXPORT CUresult
cuGraphAddChildGraphNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                         size_t count, CUgraph child_handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_graph *child = HM_HANDLE(HM_GRAPH, child_handle);
    struct hm_node *node;

    if (handle == NULL || child == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_GRAPH, dependencies, count);
    if (node == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node->child = hm_graph_clone(child);
    return hm_node_finish(node, CUDA_SUCCESS, handle);
}

static CUresult
add_event(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies, size_t count,
          CUevent event, CUgraphNodeType type)
{
    struct hm_node *node;

    if (handle == NULL || HM_HANDLE(HM_EVENT, event) == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, type, dependencies, count);
    if (node == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node->event = event;
    return hm_node_finish(node, CUDA_SUCCESS, handle);
}

HM_EXPORT CUresult
cuGraphAddEventRecordNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                          size_t count, CUevent event)
{
    HM_ENTER(HM_INITIALIZED);
    return add_event(handle, graph, dependencies, count, event, CU_GRAPH_NODE_TYPE_EVENT_RECORD);
}

HM_EXPORT CUresult
cuGraphAddEventWaitNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                        size_t count, CUevent event)
{
    HM_ENTER(HM_INITIALIZED);
    return add_event(handle, graph, dependencies, count, event, CU_GRAPH_NODE_TYPE_WAIT_EVENT);
}

CUresult
hm_node_set_alloc(struct hm_node *node, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    struct hm_graph_memory *memory;
    CUresult result;

    if (params->bytesize == 0 || params->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        !hm_device_valid(params->poolProps.location.id))
        return CUDA_ERROR_INVALID_VALUE;
    result = hm_graph_memory_new(hm_driver.cards[params->poolProps.location.id], params->bytesize,
                                 &memory);
    if (result != CUDA_SUCCESS)
        return result;
    node->op = (struct hm_op){.kind = HM_OP_GRAPH_ALLOC, .memory = memory};
    params->dptr = memory->address;
    node->alloc = *params;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphAddMemAllocNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                       size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_node *node;

    if (handle == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_MEM_ALLOC, dependencies, count);
    return node == NULL ? CUDA_ERROR_INVALID_VALUE
                        : hm_node_finish(node, hm_node_set_alloc(node, params), handle);
}

CUresult
hm_node_set_free(struct hm_node *node, CUdeviceptr address)
{
    const struct hm_range *range = hm_range_at(address);

    if (range == NULL || range->kind != HM_MEMORY_GRAPH || range->address != address)
        return CUDA_ERROR_INVALID_VALUE;
    node->op = (struct hm_op){.kind = HM_OP_GRAPH_FREE, .memory = range->owner};
    hm_graph_memory_hold(range->owner);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphAddMemFreeNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *dependencies,
                      size_t count, CUdeviceptr address)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_node *node;

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node = hm_graph_add(graph, CU_GRAPH_NODE_TYPE_MEM_FREE, dependencies, count);
    return node == NULL ? CUDA_ERROR_INVALID_VALUE
                        : hm_node_finish(node, hm_node_set_free(node, address), handle);
}
