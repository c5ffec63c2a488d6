/*
 * Memory the application can name by address. A device address is the address of host memory that
 * is mapped without being reserved, so it is unique and data survive, at the price of pages that
 * are written.
 */
#pragma once

#include "cuda_driver.h"

enum hm_memory {
    HM_MEMORY_DEVICE,
    HM_MEMORY_MANAGED,
    HM_MEMORY_HOST,
    HM_MEMORY_REGISTERED,
    HM_MEMORY_POOL,
    HM_MEMORY_GRAPH,
    HM_MEMORY_MAPPED, /* a VMM mapping */
    HM_MEMORY_IPC,
    HM_MEMORY_EXTERNAL,
    HM_MEMORY_GLOBAL, /* a module's globals */
};

struct hm_range {
    uint64_t address;
    uint64_t bytes;
    enum hm_memory kind;
    struct hm_context *ctx; /* freed with it; NULL for what belongs to the process */
    uint32_t card;
    uint64_t blocks; /* physical memory taken for it alone */
    void *owner;     /* slab, pool, graph allocation or physical memory it is part of */
    unsigned int flags;
    uint64_t id;
    bool sync_memops;
};

/* Adds a copy of `range` under a new id. */
struct hm_range *hm_range_add(const struct hm_range *range);
void hm_range_remove(struct hm_range *range);
/* The range that contains the address, or NULL. */
struct hm_range *hm_range_at(uint64_t address);
/* Any range freed with that context, or NULL. */
struct hm_range *hm_range_of(const struct hm_context *ctx);

static inline bool
hm_range_on_host(const struct hm_range *range)
{
    return range->kind == HM_MEMORY_HOST || range->kind == HM_MEMORY_REGISTERED;
}

/* Whether the device may use it: a VMM mapping needs cuMemSetAccess first. */
static inline bool
hm_range_usable(const struct hm_range *range)
{
    return range->kind != HM_MEMORY_MAPPED || range->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
}
