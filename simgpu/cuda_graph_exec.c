#include "cuda_capture.h"
#include "cuda_copy.h"
#include "cuda_function.h"
#include "cuda_graph.h"
#include "cuda_handle.h"

#include <stdlib.h>

/* A graph whose edges go round in circles can't be ordered. */
static bool
acyclic(const struct hm_graph *graph)
{
    for (const struct hm_node *node = graph->first; node != NULL; node = node->next) {
        for (size_t i = 0; i < node->dependency_count; i++) {
            if (node->dependencies[i] == node)
                return false;
        }
    }
    return true;
}

static CUresult
instantiate(CUgraphExec *handle, CUgraph graph_handle, unsigned long long flags)
{
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, graph_handle);
    struct hm_exec *exec;

    if (handle == NULL || graph == NULL || !acyclic(graph))
        return CUDA_ERROR_INVALID_VALUE;
    exec = hm_allocate(sizeof(*exec));
    exec->graph = hm_graph_clone(graph);
    exec->flags = flags;
    exec->handle = (CUgraphExec)(uintptr_t)hm_handle_make(HM_EXEC, exec, NULL);
    *handle = exec->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphInstantiateWithFlags(CUgraphExec *handle, CUgraph graph, unsigned long long flags)
{
    HM_ENTER(HM_CURRENT);
    return instantiate(handle, graph, flags);
}

HM_EXPORT CUresult
cuGraphInstantiate_v2(CUgraphExec *handle, CUgraph graph, CUgraphNode *error_node, char *log,
                      size_t log_bytes)
{
    HM_ENTER(HM_CURRENT);
    if (error_node != NULL)
        *error_node = NULL;
    if (log != NULL && log_bytes > 0)
        log[0] = '\0';
    return instantiate(handle, graph, 0);
}

HM_EXPORT CUresult
cuGraphInstantiateWithParams(CUgraphExec *handle, CUgraph graph,
                             CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    HM_ENTER(HM_CURRENT);
    CUresult result;

    if (params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    result = instantiate(handle, graph, params->flags);
    params->hErrNode_out = NULL;
    params->result_out =
        result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
    return result;
}

HM_EXPORT CUresult
cuGraphExecDestroy(CUgraphExec handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_exec *exec = HM_HANDLE(HM_EXEC, handle);

    if (exec == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    hm_graph_delete(exec->graph);
    hm_handle_drop((uint64_t)(uintptr_t)handle);
    free(exec);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t *flags)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_exec *exec = HM_HANDLE(HM_EXEC, handle);

    if (exec == NULL || flags == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

/* What an earlier launch allocated and nobody freed: an error, or freed now when so asked. */
static CUresult
free_earlier(const struct hm_exec *exec)
{
    for (struct hm_node *node = exec->graph->first; node != NULL; node = node->next) {
        if (node->op.kind != HM_OP_GRAPH_ALLOC || !node->op.memory->in_use)
            continue;
        if ((exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) == 0)
            return CUDA_ERROR_INVALID_VALUE;
        hm_graph_memory_hold(node->op.memory);
        hm_graph_memory_unuse(node->op.memory);
    }
    return CUDA_SUCCESS;
}

static CUresult
fit_local_memory(const struct hm_graph *graph, struct hm_context *ctx)
{
    CUresult result = CUDA_SUCCESS;

    for (const struct hm_node *node = graph->first; node != NULL && result == CUDA_SUCCESS;
         node = node->next) {
        if (node->child != NULL)
            result = fit_local_memory(node->child, ctx);
        else if (node->type == CU_GRAPH_NODE_TYPE_KERNEL)
            result = hm_launch_local_memory(ctx, hm_function_find(node->kernel.func));
    }
    return result;
}

static CUresult
launch(struct hm_exec *exec, struct hm_stream *stream)
{
    CUresult result = free_earlier(exec);

    if (result == CUDA_SUCCESS)
        result = hm_graph_memory_reserve(exec->graph);
    if (result == CUDA_SUCCESS)
        result = fit_local_memory(exec->graph, stream->ctx);
    return result != CUDA_SUCCESS ? result : hm_graph_submit(exec->graph, stream);
}

/* In a capture a launched graph becomes a child graph. */
static CUresult
capture_launch(const struct hm_exec *exec, struct hm_stream *stream)
{
    struct hm_node *node = hm_node_new(stream->capture->graph, CU_GRAPH_NODE_TYPE_GRAPH);

    node->child = hm_graph_clone(exec->graph);
    hm_capture_append(stream, node);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphLaunch(CUgraphExec handle, CUstream stream_handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_exec *exec = HM_HANDLE(HM_EXEC, handle);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, stream_handle, &stream);

    if (result == CUDA_SUCCESS && exec == NULL)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = hm_capture_check(stream);
    if (result != CUDA_SUCCESS)
        return result;
    return stream->capture != NULL ? capture_launch(exec, stream) : launch(exec, stream);
}

/* An upload reserves what the first launch would. */
HM_EXPORT CUresult
cuGraphUpload(CUgraphExec handle, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_exec *exec = HM_HANDLE(HM_EXEC, handle);

    (void)stream;
    return exec == NULL ? CUDA_ERROR_INVALID_VALUE : hm_graph_memory_reserve(exec->graph);
}

/* The same nodes in the same places: then the new graph can take the old one's place. */
static bool
same_shape(const struct hm_graph *a, const struct hm_graph *b)
{
    const struct hm_node *there = b->first;

    if (a->count != b->count)
        return false;
    for (const struct hm_node *here = a->first; here != NULL; here = here->next) {
        if (here->type != there->type || here->dependency_count != there->dependency_count)
            return false;
        there = there->next;
    }
    return true;
}

HM_EXPORT CUresult
cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph_handle, CUgraphExecUpdateResultInfo *info)
{
    HM_ENTER(HM_CURRENT);
    struct hm_exec *exec = HM_HANDLE(HM_EXEC, handle);
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, graph_handle);

    if (exec == NULL || graph == NULL || info == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *info = (CUgraphExecUpdateResultInfo){.result = CU_GRAPH_EXEC_UPDATE_SUCCESS};
    if (!same_shape(exec->graph, graph)) {
        info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    hm_graph_delete(exec->graph);
    exec->graph = hm_graph_clone(graph);
    return CUDA_SUCCESS;
}

/* The node inside the executable graph that came from `handle`. */
static struct hm_node *
exec_node(CUgraphExec exec_handle, CUgraphNode handle, CUgraphNodeType type)
{
    const struct hm_exec *exec = HM_HANDLE(HM_EXEC, exec_handle);
    struct hm_node *node = exec != NULL ? exec->graph->first : NULL;

    while (node != NULL && node->origin != (uint64_t)(uintptr_t)handle)
        node = node->next;
    return node != NULL && node->type == type ? node : NULL;
}

HM_EXPORT CUresult
cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode handle,
                                  const CUDA_KERNEL_NODE_PARAMS *params)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node = exec_node(exec, handle, CU_GRAPH_NODE_TYPE_KERNEL);

    return node == NULL || params == NULL ? CUDA_ERROR_INVALID_VALUE
                                          : hm_node_set_kernel(node, params);
}

HM_EXPORT CUresult
cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode handle, const CUDA_MEMCPY3D *params,
                               CUcontext ctx)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node = exec_node(exec, handle, CU_GRAPH_NODE_TYPE_MEMCPY);
    CUDA_MEMCPY3D_PEER copy;

    if (node == NULL || params == NULL || hm_context_find(ctx) == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    copy = hm_copy_from_3d(params);
    return hm_copy_prepare(&copy, &node->op);
}

HM_EXPORT CUresult
cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode handle,
                               const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
    HM_ENTER(HM_CURRENT);
    struct hm_node *node = exec_node(exec, handle, CU_GRAPH_NODE_TYPE_MEMSET);

    if (node == NULL || params == NULL || hm_context_find(ctx) == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return hm_set_prepare(params, &node->op);
}

HM_EXPORT CUresult
cuGraphNodeSetEnabled(CUgraphExec exec_handle, CUgraphNode handle, unsigned int enabled)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_exec *exec = HM_HANDLE(HM_EXEC, exec_handle);
    struct hm_node *node = exec != NULL ? exec->graph->first : NULL;

    while (node != NULL && node->origin != (uint64_t)(uintptr_t)handle)
        node = node->next;
    if (node == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    node->disabled = enabled == 0;
    return CUDA_SUCCESS;
}
