#include "cuda_graph.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_event.h"
#include "cuda_function.h"
#include "cuda_handle.h"

struct hm_graph *
hm_graph_new(void)
{
    struct hm_graph *graph = hm_allocate(sizeof(*graph));

    graph->handle = (CUgraph)(uintptr_t)hm_handle_make(HM_GRAPH, graph, NULL);
    return graph;
}

struct hm_node *
hm_node_new(struct hm_graph *graph, CUgraphNodeType type)
{
    struct hm_node *node = hm_allocate(sizeof(*node));

    node->type = type;
    node->graph = graph;
    node->handle = (CUgraphNode)(uintptr_t)hm_handle_make(HM_NODE, node, NULL);
    if (graph->last != NULL)
        graph->last->next = node;
    else
        graph->first = node;
    graph->last = node;
    graph->count++;
    return node;
}

void
hm_node_depend(struct hm_node *node, struct hm_node *on)
{
    struct hm_node **more;

    for (size_t i = 0; i < node->dependency_count; i++) {
        if (node->dependencies[i] == on)
            return;
    }
    more = hm_allocate((node->dependency_count + 1) * sizeof(*more));
    if (node->dependency_count > 0)
        memcpy(more, node->dependencies, node->dependency_count * sizeof(*more));
    more[node->dependency_count++] = on;
    free(node->dependencies);
    node->dependencies = more;
}

bool
hm_node_depends(const struct hm_node *node, const struct hm_node *on)
{
    if (node == on)
        return true;
    for (size_t i = 0; i < node->dependency_count; i++) {
        if (hm_node_depends(node->dependencies[i], on))
            return true;
    }
    return false;
}

/* Everything but its place in the graph. */
static void
node_free(struct hm_node *node)
{
    hm_handle_drop((uint64_t)(uintptr_t)node->handle);
    hm_arguments_free(node->kernel.kernelParams);
    if (node->child != NULL)
        hm_graph_delete(node->child);
    if (node->op.kind == HM_OP_GRAPH_ALLOC || node->op.kind == HM_OP_GRAPH_FREE)
        hm_graph_memory_drop(node->op.memory);
    free(node->dependencies);
    free(node);
}

static void
forget_dependency(struct hm_node *node, const struct hm_node *on)
{
    for (size_t i = 0; i < node->dependency_count; i++) {
        if (node->dependencies[i] == on)
            node->dependencies[i--] = node->dependencies[--node->dependency_count];
    }
}

void
hm_node_delete(struct hm_node *node)
{
    struct hm_graph *graph = node->graph;
    struct hm_node *before = NULL;

    for (struct hm_node *other = graph->first; other != NULL; other = other->next) {
        if (other->next == node)
            before = other;
        forget_dependency(other, node);
    }
    if (before != NULL)
        before->next = node->next;
    else
        graph->first = node->next;
    if (graph->last == node)
        graph->last = before;
    graph->count--;
    node_free(node);
}

void
hm_graph_delete(struct hm_graph *graph)
{
    struct hm_node *node = graph->first;

    while (node != NULL) {
        struct hm_node *next = node->next;

        node_free(node);
        node = next;
    }
    hm_handle_drop((uint64_t)(uintptr_t)graph->handle);
    free(graph);
}

static void
clone_node(struct hm_graph *into, const struct hm_node *node)
{
    struct hm_node *copy = hm_node_new(into, node->type);

    copy->disabled = node->disabled;
    copy->origin = (uint64_t)(uintptr_t)node->handle;
    copy->op = node->op;
    copy->event = node->event;
    copy->alloc = node->alloc;
    if (node->type == CU_GRAPH_NODE_TYPE_KERNEL)
        hm_node_set_kernel(copy, &node->kernel);
    if (node->child != NULL)
        copy->child = hm_graph_clone(node->child);
    if (node->op.kind == HM_OP_GRAPH_ALLOC || node->op.kind == HM_OP_GRAPH_FREE)
        hm_graph_memory_hold(node->op.memory);
}

/* The node of `graph` at the same place as `node` in its own graph. */
static struct hm_node *
counterpart(const struct hm_graph *graph, const struct hm_node *node)
{
    struct hm_node *there = graph->first;

    for (struct hm_node *here = node->graph->first; here != node; here = here->next)
        there = there->next;
    return there;
}

struct hm_graph *
hm_graph_clone(const struct hm_graph *graph)
{
    struct hm_graph *copy = hm_graph_new();
    struct hm_node *there;

    for (const struct hm_node *node = graph->first; node != NULL; node = node->next)
        clone_node(copy, node);
    there = copy->first;
    for (const struct hm_node *node = graph->first; node != NULL; node = node->next) {
        for (size_t i = 0; i < node->dependency_count; i++)
            hm_node_depend(there, counterpart(copy, node->dependencies[i]));
        there = there->next;
    }
    return copy;
}

CUresult
hm_node_set_kernel(struct hm_node *node, const CUDA_KERNEL_NODE_PARAMS *params)
{
    struct hm_launch launch = {
        .function =
            hm_function_find(params->func != NULL ? params->func : (CUfunction)params->kern),
        .parameters = params->kernelParams,
        .extra = params->extra,
    };
    CUresult result;
    void **copy;

    result = hm_launch_prepare(&launch, &node->op);
    if (result != CUDA_SUCCESS)
        return result;
    copy = hm_arguments_copy(&launch);
    hm_arguments_free(node->kernel.kernelParams);
    node->kernel = *params;
    node->kernel.func = launch.function->handle;
    node->kernel.kernelParams = copy;
    node->kernel.extra = NULL;
    return CUDA_SUCCESS;
}

static void
submit_event_record(const struct hm_node *node, struct hm_stream *stream)
{
    struct hm_event *event = HM_HANDLE(HM_EVENT, node->event);

    if (event != NULL)
        hm_event_mark(event, stream);
}

static void
submit_event_wait(const struct hm_node *node, struct hm_stream *stream)
{
    struct hm_event *event = HM_HANDLE(HM_EVENT, node->event);

    if (event != NULL)
        hm_event_wait_on(event, stream);
}

static CUresult
submit_node(const struct hm_node *node, struct hm_stream *stream)
{
    switch (node->type) {
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return hm_graph_submit(node->child, stream);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        submit_event_record(node, stream);
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        submit_event_wait(node, stream);
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        hm_graph_memory_hold(node->op.memory);
        break;
    default:
        break;
    }
    hm_stream_submit(stream, &node->op);
    return CUDA_SUCCESS;
}

static bool
ready(const struct hm_node *node, const bool *done, const struct hm_graph *graph)
{
    size_t index = 0;

    for (const struct hm_node *other = graph->first; other != NULL; other = other->next, index++) {
        for (size_t i = 0; i < node->dependency_count && !done[index]; i++) {
            if (node->dependencies[i] == other)
                return false;
        }
    }
    return true;
}

/* Nodes are mostly in a valid order already: passes over the list until all are submitted. */
CUresult
hm_graph_submit(const struct hm_graph *graph, struct hm_stream *stream)
{
    bool *done = hm_allocate(graph->count + 1);
    size_t left = graph->count;
    bool progress = true;

    while (left > 0 && progress) {
        size_t index = 0;

        progress = false;
        for (const struct hm_node *node = graph->first; node != NULL; node = node->next, index++) {
            if (done[index] || !ready(node, done, graph))
                continue;
            if (!node->disabled)
                submit_node(node, stream);
            done[index] = true;
            progress = true;
            left--;
        }
    }
    free(done);
    return left == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
