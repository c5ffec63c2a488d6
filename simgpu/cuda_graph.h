/* Graphs: nodes are operations with an order. */
#pragma once

#include "cuda_stream.h"

/* What an alloc node makes; shared by the graph, its clones and the free node. */
struct hm_graph_memory {
    int references;
    uint64_t address;
    uint64_t bytes;
    uint32_t card;
    bool in_use;
};

struct hm_node {
    CUgraphNode handle;
    CUgraphNodeType type;
    bool disabled;
    struct hm_graph *graph;
    struct hm_node *next;
    struct hm_node **dependencies;
    size_t dependency_count;
    uint64_t origin; /* a clone: the handle it was cloned from */
    struct hm_op op; /* kernel, memcpy, memset, host, alloc and free nodes */
    CUDA_KERNEL_NODE_PARAMS kernel;
    CUevent event;
    struct hm_graph *child;
    CUDA_MEM_ALLOC_NODE_PARAMS alloc;
};

struct hm_graph {
    CUgraph handle; /* NULL for the copy inside an executable graph */
    struct hm_node *first;
    struct hm_node *last;
    size_t count;
};

struct hm_exec {
    CUgraphExec handle;
    struct hm_graph *graph;
    unsigned long long flags;
};

struct hm_graph *hm_graph_new(void);
void hm_graph_delete(struct hm_graph *graph);
struct hm_graph *hm_graph_clone(const struct hm_graph *graph);

struct hm_node *hm_node_new(struct hm_graph *graph, CUgraphNodeType type);
void hm_node_delete(struct hm_node *node);
void hm_node_depend(struct hm_node *node, struct hm_node *on);
bool hm_node_depends(const struct hm_node *node, const struct hm_node *on);
/* Takes a copy of the parameters and works out the operation. */
CUresult hm_node_set_kernel(struct hm_node *node, const CUDA_KERNEL_NODE_PARAMS *params);

CUresult hm_node_set_copy(struct hm_node *node, const CUDA_MEMCPY3D *params);
/* Makes the memory and fills in its address. */
CUresult hm_node_set_alloc(struct hm_node *node, CUDA_MEM_ALLOC_NODE_PARAMS *params);
CUresult hm_node_set_free(struct hm_node *node, CUdeviceptr address);
/* A node of the graph behind those dependencies; NULL when a handle is wrong. */
struct hm_node *hm_graph_add(CUgraph handle, CUgraphNodeType type, const CUgraphNode *dependencies,
                             size_t count);
/* Hands the node out, or takes it away again when its parameters were wrong. */
CUresult hm_node_finish(struct hm_node *node, CUresult result, CUgraphNode *handle);

/* Makes memory for an alloc node; address space only. */
CUresult hm_graph_memory_new(uint32_t card, uint64_t bytes, struct hm_graph_memory **memory);
void hm_graph_memory_hold(struct hm_graph_memory *memory);
void hm_graph_memory_drop(struct hm_graph_memory *memory);
/* The alloc node of a launched graph, and the free; both consume one reference. */
void hm_graph_memory_use(struct hm_graph_memory *memory);
void hm_graph_memory_unuse(struct hm_graph_memory *memory);
/* Physical memory for the alloc nodes of a graph about to be launched. */
CUresult hm_graph_memory_reserve(const struct hm_graph *graph);

/* Puts all of a graph's operations on a stream, in an order that its edges allow. */
CUresult hm_graph_submit(const struct hm_graph *graph, struct hm_stream *stream);
