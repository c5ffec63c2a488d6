/*
 * Memory that graphs allocate. The driver keeps it in one pool for each device and tells what that holds; the ledger has
 * the last value read. What a launch may add is bounded beforehand by the addresses of the graph's allocations: the
 * driver fixes them when the nodes are made, gives the same ones to allocations that never live at once, and backs them
 * in pieces of HM_GRAPH_PIECE_BYTES.
 */
#pragma once
#include "pool.h"

#define HM_GRAPH_PIECE_BYTES 33554432 /* H100, driver 580 */

/* An executable graph with memory nodes, or one about to be made. */
struct hm_graph_exec;

/* A launch or upload in flight. */
struct hm_graph_flight {
    struct hm_graph_exec *exec;          /* NULL: allocates nothing */
    struct hm_charge charge[HM_DEVICES]; /* valid for the devices of exec */
};

extern uint32_t hm_graph_living; /* executable graphs with memory nodes in this process; atomic */

/* False as long as nothing in this process launches memory nodes: the one branch that other launches pay. */
static inline bool
hm_graph_any(void)
{
    return HM_UNLIKELY(__atomic_load_n(&hm_graph_living, __ATOMIC_RELAXED) > 0);
}

/* What a graph allocates, child graphs included (bodies of conditional nodes can't). NULL: nothing, or no tenant. */
struct hm_graph_exec *hm_graph_measure(CUgraph graph);

/* Settle an instantiation: on success the handle stands for exec, otherwise exec is freed. Returns result. */
CUresult hm_graph_made(struct hm_graph_exec *exec, const CUgraphExec *handle, CUresult result);

/* NULL: has no memory nodes. */
struct hm_graph_exec *hm_graph_find(CUgraphExec handle);

/* Take exec out, before the driver destroys the handle. */
struct hm_graph_exec *hm_graph_take(CUgraphExec handle);
/* Settle cuGraphExecDestroy. Returns result. */
CUresult hm_graph_destroyed(struct hm_graph_exec *exec, CUgraphExec handle, CUresult result);

/* Reserve what a launch or upload of exec (may be NULL) on the stream may add. False: out of memory. */
bool hm_graph_begin(struct hm_graph_flight *flight, struct hm_graph_exec *exec, uint64_t stream);
/* Charge what the pools hold now. Returns result. */
CUresult hm_graph_end(struct hm_graph_flight *flight, CUresult result);

/* The same number for the same queue of work. per_thread: the function is a _ptsz. */
uint64_t hm_graph_stream(CUstream stream, bool per_thread);

/* The pool of a device was trimmed. */
void hm_graph_trimmed(int device);
