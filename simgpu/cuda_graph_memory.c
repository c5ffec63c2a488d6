#include "cuda_graph.h"

#include <stdlib.h>

#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_space.h"

/* Per card: graphs of this process share physical memory. What a launch takes stays until a trim. */
struct usage {
    uint64_t used_bytes;
    uint64_t used_high;
    uint64_t reserved_bytes;
    uint64_t reserved_high;
};

static struct usage usage[HM_CARDS_MAX];

CUresult
hm_graph_memory_new(uint32_t card, uint64_t bytes, struct hm_graph_memory **made)
{
    struct hm_graph_memory *memory = hm_allocate(sizeof(*memory));
    struct hm_range range = {.kind = HM_MEMORY_GRAPH, .card = card, .owner = memory};

    range.bytes = hm_round_up(bytes, HM_BLOCK_BYTES);
    range.address = hm_space_take(0, range.bytes, true);
    if (range.address == 0) {
        free(memory);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *memory = (struct hm_graph_memory){
        .references = 1,
        .address = range.address,
        .bytes = range.bytes,
        .card = card,
    };
    hm_range_add(&range);
    *made = memory;
    return CUDA_SUCCESS;
}

void
hm_graph_memory_hold(struct hm_graph_memory *memory)
{
    memory->references++;
}

void
hm_graph_memory_drop(struct hm_graph_memory *memory)
{
    if (--memory->references > 0)
        return;
    hm_memory_delete(hm_range_at(memory->address));
    free(memory);
}

/* The operation's reference stays as that of the use: memory outlives its graph until it is freed. */
void
hm_graph_memory_use(struct hm_graph_memory *memory)
{
    struct usage *use = &usage[memory->card];

    if (memory->in_use) {
        hm_graph_memory_drop(memory);
        return;
    }
    memory->in_use = true;
    use->used_bytes += memory->bytes;
    if (use->used_bytes > use->used_high)
        use->used_high = use->used_bytes;
}

void
hm_graph_memory_unuse(struct hm_graph_memory *memory)
{
    if (memory->in_use) {
        memory->in_use = false;
        memory->references--;
        usage[memory->card].used_bytes -= memory->bytes;
    }
    hm_graph_memory_drop(memory);
}

/* How far use on the card rises above what it is now while the graph runs, in list order. */
static void
peak(const struct hm_graph *graph, uint32_t card, int64_t *now, int64_t *high)
{
    for (const struct hm_node *node = graph->first; node != NULL; node = node->next) {
        if (node->child != NULL)
            peak(node->child, card, now, high);
        if (node->op.kind == HM_OP_GRAPH_ALLOC && node->op.memory->card == card)
            *now += (int64_t)node->op.memory->bytes;
        else if (node->op.kind == HM_OP_GRAPH_FREE && node->op.memory->card == card)
            *now -= (int64_t)node->op.memory->bytes;
        if (*now > *high)
            *high = *now;
    }
}

CUresult
hm_graph_memory_reserve(const struct hm_graph *graph)
{
    for (uint32_t card = 0; card < hm_driver.state->cards; card++) {
        struct usage *use = &usage[card];
        int64_t now = 0;
        int64_t high = 0;
        uint64_t need;

        peak(graph, card, &now, &high);
        need = use->used_bytes + (uint64_t)high;
        if (need <= use->reserved_bytes)
            continue;
        if (!hm_blocks_take(card, hm_blocks(need - use->reserved_bytes)))
            return CUDA_ERROR_OUT_OF_MEMORY;
        use->reserved_bytes = need;
        if (use->reserved_bytes > use->reserved_high)
            use->reserved_high = use->reserved_bytes;
    }
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGraphMemTrim(CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    struct usage *use;

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    use = &usage[hm_driver.cards[device]];
    hm_blocks_give(hm_driver.cards[device], hm_blocks(use->reserved_bytes - use->used_bytes));
    use->reserved_bytes = use->used_bytes;
    return CUDA_SUCCESS;
}

static uint64_t *
attribute(struct usage *use, CUgraphMem_attribute name)
{
    switch (name) {
    case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT:
        return &use->used_bytes;
    case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH:
        return &use->used_high;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT:
        return &use->reserved_bytes;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH:
        return &use->reserved_high;
    default:
        return NULL;
    }
}

HM_EXPORT CUresult
cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute name, void *value)
{
    HM_ENTER(HM_INITIALIZED);
    const uint64_t *field;

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    field = attribute(&usage[hm_driver.cards[device]], name);
    if (field == NULL || value == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *(cuuint64_t *)value = *field;
    return CUDA_SUCCESS;
}

/* Only the high marks can be set, and only back to zero. */
HM_EXPORT CUresult
cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute name, void *value)
{
    HM_ENTER(HM_INITIALIZED);
    struct usage *use;

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    use = &usage[hm_driver.cards[device]];
    if (value == NULL || *(cuuint64_t *)value != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (name == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
        use->used_high = use->used_bytes;
    else if (name == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
        use->reserved_high = use->reserved_bytes;
    else
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}
