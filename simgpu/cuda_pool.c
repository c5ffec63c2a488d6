#include "cuda_pool.h"

#include <stdlib.h>

#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_space.h"

#define STEP_BYTES (32 * HM_MIB)
#define PIECE_BYTES 512

static struct hm_pool *pools;
static struct hm_pool *defaults[HM_CARDS_MAX];
static struct hm_pool *current[HM_CARDS_MAX];

struct hm_pool *
hm_pool_new(uint32_t card, const CUmemPoolProps *props)
{
    struct hm_pool *pool = hm_allocate(sizeof(*pool));

    pool->card = card;
    pool->props = *props;
    pool->access[card] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    for (size_t i = 0; i < HM_COUNT(pool->reuse); i++)
        pool->reuse[i] = 1;
    pool->handle = (CUmemoryPool)(uintptr_t)hm_handle_make(HM_POOL, pool, NULL);
    pool->next = pools;
    pools = pool;
    return pool;
}

struct hm_pool *
hm_pool_find(CUmemoryPool handle)
{
    return HM_HANDLE(HM_POOL, handle);
}

struct hm_pool *
hm_pool_default(CUdevice device)
{
    CUmemPoolProps props = {
        .allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
    };

    if (defaults[device] == NULL)
        defaults[device] = hm_pool_new(hm_driver.cards[device], &props);
    return defaults[device];
}

struct hm_pool *
hm_pool_current(CUdevice device)
{
    return current[device] != NULL ? current[device] : hm_pool_default(device);
}

void
hm_pool_set_current(CUdevice device, struct hm_pool *pool)
{
    current[device] = pool;
}

static void
pool_end(struct hm_pool *pool)
{
    struct hm_pool **link = &pools;

    while (*link != pool)
        link = &(*link)->next;
    *link = pool->next;
    hm_blocks_give(pool->card, hm_blocks(pool->reserved_bytes));
    free(pool);
}

void
hm_pool_delete(struct hm_pool *pool)
{
    for (int device = 0; device < hm_driver.device_count; device++) {
        if (current[device] == pool)
            current[device] = NULL;
    }
    hm_handle_drop((uint64_t)(uintptr_t)pool->handle);
    pool->destroyed = true;
    hm_pool_trim(pool, 0);
    if (pool->used_bytes == 0)
        pool_end(pool);
}

static bool
grow(struct hm_pool *pool, uint64_t need)
{
    uint64_t more;

    if (need <= pool->reserved_bytes)
        return true;
    more = hm_round_up(need - pool->reserved_bytes, STEP_BYTES);
    if (!hm_blocks_take(pool->card, hm_blocks(more)))
        return false;
    pool->reserved_bytes += more;
    if (pool->reserved_bytes > pool->reserved_high)
        pool->reserved_high = pool->reserved_bytes;
    return true;
}

/* Before it says no, a pool takes back what the card's other pools of the process keep unused. */
static bool
grow_or_trim(struct hm_pool *pool, uint64_t need)
{
    if (grow(pool, need))
        return true;
    for (struct hm_pool *other = pools; other != NULL; other = other->next) {
        if (other->card == pool->card && other != pool)
            hm_pool_trim(other, 0);
    }
    return grow(pool, need);
}

CUresult
hm_pool_alloc(struct hm_pool *pool, uint64_t bytes, CUdeviceptr *address)
{
    struct hm_range range = {
        .kind = HM_MEMORY_POOL,
        .card = pool->card,
        .owner = pool,
        .bytes = bytes,
    };
    uint64_t size = hm_round_up(bytes, PIECE_BYTES);

    if (bytes > UINT64_MAX / 4)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (pool->props.maxSize != 0 && pool->used_bytes + size > pool->props.maxSize)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!grow_or_trim(pool, pool->used_bytes + size))
        return CUDA_ERROR_OUT_OF_MEMORY;
    range.address = hm_space_take(0, bytes, true);
    if (range.address == 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pool->used_bytes += size;
    if (pool->used_bytes > pool->used_high)
        pool->used_high = pool->used_bytes;
    hm_range_add(&range);
    *address = range.address;
    return CUDA_SUCCESS;
}

void
hm_pool_free(uint64_t address)
{
    struct hm_range *range = hm_range_at(address);
    struct hm_pool *pool;

    /* Freed twice: the first one won. */
    if (range == NULL || range->kind != HM_MEMORY_POOL)
        return;
    pool = range->owner;
    if (!pool->imported)
        pool->used_bytes -= hm_round_up(range->bytes, PIECE_BYTES);
    hm_memory_delete(range);
    if (pool->destroyed)
        hm_pool_trim(pool, 0);
    if (pool->destroyed && pool->used_bytes == 0)
        pool_end(pool);
}

void
hm_pool_trim(struct hm_pool *pool, uint64_t keep_bytes)
{
    uint64_t keep = keep_bytes > pool->used_bytes ? keep_bytes : pool->used_bytes;

    keep = hm_round_up(keep, STEP_BYTES);
    if (keep >= pool->reserved_bytes)
        return;
    hm_blocks_give(pool->card, hm_blocks(pool->reserved_bytes - keep));
    pool->reserved_bytes = keep;
}

void
hm_pools_release(uint32_t card)
{
    for (struct hm_pool *pool = pools; pool != NULL; pool = pool->next) {
        if (pool->card == card && pool->reserved_bytes > pool->release_threshold)
            hm_pool_trim(pool, pool->release_threshold);
    }
}
