#include "cuda_memory.h"

#include <stdlib.h>

#include "cuda_context.h"
#include "cuda_space.h"

bool
hm_blocks_take(uint32_t card, uint64_t blocks)
{
    bool taken;

    hm_state_lock();
    taken = hm_card_take(card, blocks);
    hm_state_unlock();
    return taken;
}

void
hm_blocks_give(uint32_t card, uint64_t blocks)
{
    hm_state_lock();
    hm_card_give(card, blocks);
    hm_state_unlock();
}

static bool
place(struct hm_context *ctx, struct hm_range *range)
{
    uint64_t blocks = hm_blocks(range->bytes);

    if (range->bytes <= HM_SLAB_PIECE_MAX) {
        struct hm_slab *slab;

        range->address = hm_slab_take(ctx, range->bytes, &slab);
        range->owner = slab;
        return range->address != 0;
    }
    /* Managed memory arrives on the card when the card touches it. */
    if (range->kind != HM_MEMORY_MANAGED) {
        if (!hm_blocks_take(ctx->card, blocks))
            return false;
        range->blocks = blocks;
    }
    range->address = hm_space_take(0, range->bytes, true);
    if (range->address == 0)
        hm_blocks_give(ctx->card, range->blocks);
    return range->address != 0;
}

CUresult
hm_memory_new(struct hm_context *ctx, enum hm_memory kind, uint64_t bytes, struct hm_range **range)
{
    struct hm_range wanted = {.bytes = bytes, .kind = kind, .ctx = ctx, .card = ctx->card};

    /* No card is that large, and roundings of such a size would wrap. */
    if (bytes > UINT64_MAX / 4 || !place(ctx, &wanted))
        return CUDA_ERROR_OUT_OF_MEMORY;
    *range = hm_range_add(&wanted);
    return CUDA_SUCCESS;
}

static bool
in_slab(const struct hm_range *range)
{
    return (range->kind == HM_MEMORY_DEVICE || range->kind == HM_MEMORY_MANAGED ||
            range->kind == HM_MEMORY_GLOBAL) &&
           range->owner != NULL;
}

void
hm_memory_blocks(const struct hm_range *range, uint64_t *address, uint64_t *bytes)
{
    *address = in_slab(range) ? hm_slab_address(range->owner) : range->address;
    *bytes = in_slab(range) ? HM_BLOCK_BYTES : range->bytes;
}

void
hm_memory_delete(struct hm_range *range)
{
    if (in_slab(range))
        hm_slab_give(range->owner, range->address, range->bytes);
    else if (range->kind == HM_MEMORY_HOST)
        free((void *)range->address);
    else if (range->kind != HM_MEMORY_REGISTERED && range->kind != HM_MEMORY_MAPPED)
        hm_space_give(range->address, range->bytes);
    if (range->blocks != 0 && range->kind == HM_MEMORY_MANAGED)
        hm_card_unbill(range->card, -(int64_t)range->blocks);
    if (range->blocks != 0)
        hm_blocks_give(range->card, range->blocks);
    hm_range_remove(range);
}

void
hm_managed_touch(uint64_t address)
{
    struct hm_range *range = hm_range_at(address);
    uint64_t blocks;

    if (range == NULL || range->kind != HM_MEMORY_MANAGED || range->owner != NULL ||
        range->blocks != 0)
        return;
    blocks = hm_blocks(range->bytes);
    if (!hm_blocks_take(range->card, blocks))
        return;
    range->blocks = blocks;
    hm_card_unbill(range->card, (int64_t)blocks);
}
