#include "cuda_copy.h"
#include "cuda_graph.h"
#include "cuda_handle.h"

static struct hm_node *
typed(CUgraphNode handle, CUgraphNodeType type)
{
    struct hm_node *node = HM_HANDLE(HM_NODE, handle);

    return node != NULL && node->type == type ? node : NULL;
}

HM_EXPORT CUresult
cuGraphKernelNodeGetParams_v2(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS *params)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_KERNEL);

    if (node == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->kernel;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphKernelNodeSetParams_v2(CUgraphNode handle, const CUDA_KERNEL_NODE_PARAMS *params)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_KERNEL);

    return node == NULL || params == NULL ? CUDA_ERROR_INVALID_VALUE
                                          : hm_node_set_kernel(node, params);
}

HM_EXPORT CUresult
cuGraphMemcpyNodeGetParams(CUgraphNode handle, CUDA_MEMCPY3D *params)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_MEMCPY);

    if (node == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *params = hm_copy_to_3d(&node->op.copy);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphMemcpyNodeSetParams(CUgraphNode handle, const CUDA_MEMCPY3D *params)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_MEMCPY);

    return node == NULL || params == NULL ? CUDA_ERROR_INVALID_VALUE
                                          : hm_node_set_copy(node, params);
}

HM_EXPORT CUresult
cuGraphMemsetNodeGetParams(CUgraphNode handle, CUDA_MEMSET_NODE_PARAMS *params)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_MEMSET);

    if (node == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->op.set;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphHostNodeGetParams(CUgraphNode handle, CUDA_HOST_NODE_PARAMS *params)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_HOST);

    if (node == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    params->fn = node->op.host.function;
    params->userData = node->op.host.data;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphMemAllocNodeGetParams(CUgraphNode handle, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_MEM_ALLOC);

    if (node == NULL || params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->alloc;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphMemFreeNodeGetParams(CUgraphNode handle, CUdeviceptr *address)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_MEM_FREE);

    if (node == NULL || address == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *address = node->op.memory->address;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphChildGraphNodeGetGraph(CUgraphNode handle, CUgraph *graph)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = typed(handle, CU_GRAPH_NODE_TYPE_GRAPH);

    if (node == NULL || graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = node->child->handle;
    return CUDA_SUCCESS;
}
