#include "cuda_graph.h"

#include "cuda_handle.h"

HM_EXPORT CUresult
cuGraphCreate(CUgraph *handle, unsigned int flags)
{
    HM_ENTER(HM_INITIALIZED);

    if (handle == NULL || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = hm_graph_new()->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphDestroy(CUgraph handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_graph *graph = HM_HANDLE(HM_GRAPH, handle);

    if (graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    hm_graph_delete(graph);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphClone(CUgraph *handle, CUgraph original)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, original);

    if (handle == NULL || graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = hm_graph_clone(graph)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphNodeFindInClone(CUgraphNode *handle, CUgraphNode original, CUgraph clone)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, clone);

    if (handle == NULL || graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (const struct hm_node *node = graph->first; node != NULL; node = node->next) {
        if (node->origin == (uint64_t)(uintptr_t)original) {
            *handle = node->handle;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_VALUE;
}

HM_EXPORT CUresult
cuGraphDestroyNode(CUgraphNode handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_node *node = HM_HANDLE(HM_NODE, handle);

    if (node == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    hm_node_delete(node);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType *type)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_node *node = HM_HANDLE(HM_NODE, handle);

    if (node == NULL || type == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *type = node->type;
    return CUDA_SUCCESS;
}

/* The lists below all work alike: without an array they tell the count; entries behind the end of
 * the list are NULL and the count is what was written. */
struct list {
    size_t room;
    size_t count;
};

static struct list
list_start(const void *array, const size_t *count)
{
    return (struct list){.room = array != NULL ? *count : 0};
}

static void
list_end(const struct list *list, CUgraphNode *first, CUgraphNode *second, size_t *count)
{
    for (size_t i = list->count; first != NULL && i < list->room; i++) {
        first[i] = NULL;
        if (second != NULL)
            second[i] = NULL;
    }
    *count = first == NULL || list->count < list->room ? list->count : list->room;
}

static void
list_add(struct list *list, CUgraphNode *array, const struct hm_node *node)
{
    if (list->count < list->room)
        array[list->count] = node->handle;
    list->count++;
}

static CUresult
nodes_of(CUgraph handle, CUgraphNode *nodes, size_t *count, bool roots_only)
{
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, handle);
    struct list list;

    if (graph == NULL || count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    list = list_start(nodes, count);
    for (const struct hm_node *node = graph->first; node != NULL; node = node->next) {
        if (!roots_only || node->dependency_count == 0)
            list_add(&list, nodes, node);
    }
    list_end(&list, nodes, NULL, count);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    return nodes_of(handle, nodes, count, false);
}

HM_EXPORT CUresult
cuGraphGetRootNodes(CUgraph handle, CUgraphNode *nodes, size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    return nodes_of(handle, nodes, count, true);
}

/* Edge data are all zero: plain edges. */
static void
no_edge_data(CUgraphEdgeData *edges, const size_t *count)
{
    for (size_t i = 0; edges != NULL && i < *count; i++)
        edges[i] = (CUgraphEdgeData){0};
}

static CUresult
edges_of(CUgraph handle, CUgraphNode *from, CUgraphNode *to, size_t *count)
{
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, handle);
    struct list list;

    if (graph == NULL || count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    list = list_start(from, count);
    for (const struct hm_node *node = graph->first; node != NULL; node = node->next) {
        for (size_t i = 0; i < node->dependency_count; i++) {
            if (list.count < list.room && to != NULL)
                to[list.count] = node->handle;
            list_add(&list, from, node->dependencies[i]);
        }
    }
    list_end(&list, from, to, count);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphGetEdges(CUgraph handle, CUgraphNode *from, CUgraphNode *to, size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    return edges_of(handle, from, to, count);
}

HM_EXPORT CUresult
cuGraphGetEdges_v2(CUgraph handle, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *edges,
                   size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    CUresult result = edges_of(handle, from, to, count);

    if (result == CUDA_SUCCESS && from != NULL)
        no_edge_data(edges, count);
    return result;
}

static CUresult
dependencies_of(CUgraphNode handle, CUgraphNode *nodes, size_t *count)
{
    const struct hm_node *node = HM_HANDLE(HM_NODE, handle);
    struct list list;

    if (node == NULL || count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    list = list_start(nodes, count);
    for (size_t i = 0; i < node->dependency_count; i++)
        list_add(&list, nodes, node->dependencies[i]);
    list_end(&list, nodes, NULL, count);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphNodeGetDependencies(CUgraphNode handle, CUgraphNode *nodes, size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    return dependencies_of(handle, nodes, count);
}

HM_EXPORT CUresult
cuGraphNodeGetDependencies_v2(CUgraphNode handle, CUgraphNode *nodes, CUgraphEdgeData *edges,
                              size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    CUresult result = dependencies_of(handle, nodes, count);

    if (result == CUDA_SUCCESS && nodes != NULL)
        no_edge_data(edges, count);
    return result;
}

static bool
directly_depends(const struct hm_node *node, const struct hm_node *on)
{
    for (size_t i = 0; i < node->dependency_count; i++) {
        if (node->dependencies[i] == on)
            return true;
    }
    return false;
}

static CUresult
dependents_of(CUgraphNode handle, CUgraphNode *nodes, size_t *count)
{
    const struct hm_node *node = HM_HANDLE(HM_NODE, handle);
    struct list list;

    if (node == NULL || count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    list = list_start(nodes, count);
    for (const struct hm_node *other = node->graph->first; other != NULL; other = other->next) {
        if (directly_depends(other, node))
            list_add(&list, nodes, other);
    }
    list_end(&list, nodes, NULL, count);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphNodeGetDependentNodes(CUgraphNode handle, CUgraphNode *nodes, size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    return dependents_of(handle, nodes, count);
}

HM_EXPORT CUresult
cuGraphNodeGetDependentNodes_v2(CUgraphNode handle, CUgraphNode *nodes, CUgraphEdgeData *edges,
                                size_t *count)
{
    HM_ENTER(HM_INITIALIZED);
    CUresult result = dependents_of(handle, nodes, count);

    if (result == CUDA_SUCCESS && nodes != NULL)
        no_edge_data(edges, count);
    return result;
}

static CUresult
add_edges(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, size_t count)
{
    const struct hm_graph *graph = HM_HANDLE(HM_GRAPH, handle);

    if (graph == NULL || (count > 0 && (from == NULL || to == NULL)))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        struct hm_node *on = HM_HANDLE(HM_NODE, from[i]);
        struct hm_node *node = HM_HANDLE(HM_NODE, to[i]);

        if (on == NULL || node == NULL || on->graph != graph || node->graph != graph)
            return CUDA_ERROR_INVALID_VALUE;
        hm_node_depend(node, on);
    }
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuGraphAddDependencies(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, size_t count)
{
    HM_ENTER(HM_INITIALIZED);
    return add_edges(handle, from, to, count);
}

HM_EXPORT CUresult
cuGraphAddDependencies_v2(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to,
                          const CUgraphEdgeData *edges, size_t count)
{
    HM_ENTER(HM_INITIALIZED);
    (void)edges;
    return add_edges(handle, from, to, count);
}
