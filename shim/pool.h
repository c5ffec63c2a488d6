/* The stream-ordered pools of this process, whose reserved bytes are charged as the driver reports them (pool_charge.c). */
#pragma once
#include "quota.h"

struct hm_pool;

/* An allocation from a pool in flight: what it may make the pool grow by is reserved. */
struct hm_pool_call {
    struct hm_pool *pool; /* NULL: not ours to account for */
    struct hm_charge charge;
    uint64_t bytes;
    bool relies; /* on what the pool has unused */
};

/* The pool that a stream allocates from, or the one of a handle; NULL: not the tenant's, or not known. */
struct hm_pool *hm_pool_current(CUstream stream);
struct hm_pool *hm_pool_known(CUmemoryPool handle);

/* Around an allocation. begin is false when it does not fit; end returns the result, or out of memory if it grew beyond
   the cap, and has undone it then. per_thread: the stream argument has that meaning. */
bool hm_pool_begin(struct hm_pool_call *call, struct hm_pool *pool, uint64_t bytes);
CUresult hm_pool_end(struct hm_pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread,
                     CUresult result);

/* A pool was made; one is about to be destroyed: nobody may ask the driver about it, and what it held has fallen then. forget
   returns its device. */
struct hm_pool *hm_pool_add(CUmemoryPool handle, int device);
int hm_pool_forget(struct hm_pool *pool);

/* The current pool of a device may be another now. */
void hm_pool_forget_current(void);

/* Around a call that may give back what pools hold unused. end takes what begin returned. */
int hm_pool_sync_begin(void);
void hm_pool_sync_end(int call);

/* Read what each pool of the device holds into the ledger if that is more (device -1: all). False: one holds less. */
bool hm_pool_refresh(int device);

/*
 * Give back to the card what the pools of the device hold unused (device -1: all). Waits, 100 ms at most, for what
 * other threads are giving back.
 */
void hm_pool_trim(int device);

/* graphmem.c: the same for the device's graph memory. */
void hm_graph_refresh(int device);
void hm_graph_trim(int device);

/* In a fork child: the pools of the parent are not ours. */
void hm_pool_after_fork_child(void);
void hm_graph_after_fork_child(void);
