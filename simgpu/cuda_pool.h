/* Stream-ordered memory: pools take physical memory in steps of 32 MiB. */
#pragma once

#include "cuda_stream.h"

struct hm_pool {
    CUmemoryPool handle;
    uint32_t card;
    CUmemPoolProps props;
    bool imported;
    bool destroyed; /* goes with its last allocation */
    uint64_t used_bytes;
    uint64_t used_high;
    uint64_t reserved_bytes;
    uint64_t reserved_high;
    uint64_t release_threshold;
    int reuse[3]; /* the three REUSE attributes: kept, without effect */
    CUmemAccess_flags access[HM_CARDS_MAX];
    struct hm_pool *next;
};

/* The default pool of a device, and the one cuMemAllocAsync takes from. */
struct hm_pool *hm_pool_default(CUdevice device);
struct hm_pool *hm_pool_current(CUdevice device);
void hm_pool_set_current(CUdevice device, struct hm_pool *pool);
struct hm_pool *hm_pool_new(uint32_t card, const CUmemPoolProps *props);
void hm_pool_delete(struct hm_pool *pool);
struct hm_pool *hm_pool_find(CUmemoryPool handle);

CUresult hm_pool_alloc(struct hm_pool *pool, uint64_t bytes, CUdeviceptr *address);
/* Gives the allocation at that address back to its pool. */
void hm_pool_free(uint64_t address);
/* Keeps `keep_bytes` of what is unused. */
void hm_pool_trim(struct hm_pool *pool, uint64_t keep_bytes);
/* At a synchronization: pools of the card give back what is above their threshold. */
void hm_pools_release(uint32_t card);
