/* hook_pool.c: the stream-ordered pools of this process, whose reserved bytes are charged as the driver reports them. */
#pragma once
#include "quota.h"

/* Read what each pool of the device holds now into the ledger (device -1: all). */
void hm_pool_refresh(int device);

/* Give back to the card what the pools of the device hold unused, and refresh (device -1: all). */
void hm_pool_trim(int device);

/* hook_graph.c: the same for the device's graph memory. */
void hm_graph_refresh(int device);
void hm_graph_trim(int device);

/* In a fork child: the pools of the parent are not ours. */
void hm_pool_after_fork_child(void);
void hm_graph_after_fork_child(void);
