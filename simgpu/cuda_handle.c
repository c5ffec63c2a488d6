#include "cuda_handle.h"

#include <stdlib.h>
#include <string.h>

/* kind << 56 | generation << 32 | index + 1 */
#define KIND_SHIFT 56
#define GENERATION_SHIFT 32
#define GENERATION_MASK 0xffffffull

struct entry {
    void *object;
    struct hm_context *owner;
    uint32_t generation;
    uint32_t next_free; /* index + 1; 0: none */
    enum hm_kind kind;
};

static struct entry *entries;
static uint32_t entry_count;
static uint32_t entry_room;
static uint32_t first_free; /* index + 1 */

static void
grow(void)
{
    uint32_t room = entry_room == 0 ? 256 : entry_room * 2;
    struct entry *larger;

    if (entry_count < entry_room)
        return;
    larger = hm_allocate(room * sizeof(*entries));
    if (entries != NULL)
        memcpy(larger, entries, entry_count * sizeof(*entries));
    free(entries);
    entries = larger;
    entry_room = room;
}

static uint32_t
take_index(void)
{
    uint32_t index;

    if (first_free != 0) {
        index = first_free - 1;
        first_free = entries[index].next_free;
        return index;
    }
    grow();
    index = entry_count++;
    entries[index].generation = 0;
    return index;
}

uint64_t
hm_handle_make(enum hm_kind kind, void *object, struct hm_context *owner)
{
    uint32_t index = take_index();
    struct entry *entry = &entries[index];

    entry->object = object;
    entry->owner = owner;
    entry->kind = kind;
    return (uint64_t)kind << KIND_SHIFT |
           (entry->generation & GENERATION_MASK) << GENERATION_SHIFT | (index + 1);
}

static struct entry *
find(uint64_t handle)
{
    uint64_t index = (handle & UINT32_MAX) - 1;

    if (index >= entry_count || entries[index].object == NULL ||
        (uint64_t)entries[index].kind != handle >> KIND_SHIFT ||
        (entries[index].generation & GENERATION_MASK) !=
            (handle >> GENERATION_SHIFT & GENERATION_MASK))
        return NULL;
    return &entries[index];
}

void
hm_handle_drop(uint64_t handle)
{
    struct entry *entry = find(handle);

    if (entry == NULL)
        return;
    entry->object = NULL;
    entry->generation++;
    entry->next_free = first_free;
    first_free = (uint32_t)(handle & UINT32_MAX);
}

void *
hm_handle_object(enum hm_kind kind, uint64_t handle)
{
    const struct entry *entry = find(handle);

    return entry != NULL && entry->kind == kind ? entry->object : NULL;
}

void *
hm_handle_any(enum hm_kind kind, const struct hm_context *owner)
{
    for (uint32_t i = 0; i < entry_count; i++) {
        if (entries[i].object != NULL && entries[i].kind == kind && entries[i].owner == owner)
            return entries[i].object;
    }
    return NULL;
}
