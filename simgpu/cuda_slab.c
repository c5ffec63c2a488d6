#include "cuda_memory.h"

#include <stdlib.h>

#include "cuda_context.h"
#include "cuda_space.h"

#define GRANULES (HM_BLOCK_BYTES / HM_SLAB_GRANULE)

struct hm_slab {
    struct hm_context *ctx;
    struct hm_slab *next;
    uint64_t address;
    uint64_t used;
    bool taken[GRANULES];
};

/* The first of `count` free granules in a row, or GRANULES. */
static size_t
find_run(const struct hm_slab *slab, size_t count)
{
    size_t run = 0;

    for (size_t i = 0; i < GRANULES; i++) {
        run = slab->taken[i] ? 0 : run + 1;
        if (run == count)
            return i + 1 - count;
    }
    return GRANULES;
}

static void
mark(struct hm_slab *slab, size_t first, size_t count, bool taken)
{
    for (size_t i = first; i < first + count; i++)
        slab->taken[i] = taken;
    slab->used += taken ? count : -count;
}

static struct hm_slab *
slab_new(struct hm_context *ctx)
{
    struct hm_slab *slab;
    uint64_t address;

    if (!hm_blocks_take(ctx->card, 1))
        return NULL;
    address = hm_space_take(0, HM_BLOCK_BYTES, true);
    if (address == 0) {
        hm_blocks_give(ctx->card, 1);
        return NULL;
    }
    slab = hm_allocate(sizeof(*slab));
    *slab = (struct hm_slab){.ctx = ctx, .next = ctx->slabs, .address = address};
    ctx->slabs = slab;
    return slab;
}

static void
slab_delete(struct hm_slab *slab)
{
    struct hm_slab **link = &slab->ctx->slabs;

    while (*link != slab)
        link = &(*link)->next;
    *link = slab->next;
    hm_space_give(slab->address, HM_BLOCK_BYTES);
    hm_blocks_give(slab->ctx->card, 1);
    free(slab);
}

uint64_t
hm_slab_take(struct hm_context *ctx, uint64_t bytes, struct hm_slab **slab)
{
    size_t count = (bytes + HM_SLAB_GRANULE - 1) / HM_SLAB_GRANULE;
    size_t first = GRANULES;

    for (*slab = ctx->slabs; *slab != NULL; *slab = (*slab)->next) {
        first = GRANULES - (*slab)->used < count ? GRANULES : find_run(*slab, count);
        if (first < GRANULES)
            break;
    }
    if (*slab == NULL) {
        *slab = slab_new(ctx);
        first = 0;
    }
    if (*slab == NULL)
        return 0;
    mark(*slab, first, count, true);
    return (*slab)->address + first * HM_SLAB_GRANULE;
}

uint64_t
hm_slab_address(const struct hm_slab *slab)
{
    return slab->address;
}

void
hm_slab_give(struct hm_slab *slab, uint64_t address, uint64_t bytes)
{
    size_t count = (bytes + HM_SLAB_GRANULE - 1) / HM_SLAB_GRANULE;

    mark(slab, (address - slab->address) / HM_SLAB_GRANULE, count, false);
    if (slab->used == 0)
        slab_delete(slab);
}
