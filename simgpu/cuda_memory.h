/* Device memory: whole blocks, or pieces of a context's slabs for up to 1 MiB. */
#pragma once

#include "cuda_range.h"

#define HM_SLAB_PIECE_MAX HM_MIB
#define HM_SLAB_GRANULE 512

/* Physical blocks of a card for this process; takes and releases the state's lock. */
bool hm_blocks_take(uint32_t card, uint64_t blocks);
void hm_blocks_give(uint32_t card, uint64_t blocks);

/* New memory of that kind owned by the context. */
CUresult hm_memory_new(struct hm_context *ctx, enum hm_memory kind, uint64_t bytes,
                       struct hm_range **range);
/* Undoes hm_memory_new(), or gives back a range of any other kind: address space, blocks, record. */
void hm_memory_delete(struct hm_range *range);

/* The piece of a slab: address, or 0 when there is no memory. */
struct hm_slab;
uint64_t hm_slab_take(struct hm_context *ctx, uint64_t bytes, struct hm_slab **slab);
uint64_t hm_slab_address(const struct hm_slab *slab);
void hm_slab_give(struct hm_slab *slab, uint64_t address, uint64_t bytes);

/* The blocks a range lies in, which is what other processes can be given. */
void hm_memory_blocks(const struct hm_range *range, uint64_t *address, uint64_t *bytes);

/* Makes a managed allocation resident, if the card has room: first touch by the device. */
void hm_managed_touch(uint64_t address);
