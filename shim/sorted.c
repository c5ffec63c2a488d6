#include "sorted.h"

#include <stdlib.h>
#include <string.h>

#define GROW_ENTRIES 64

size_t
hm_sorted_lower(const struct hm_sorted *sorted, uint64_t key)
{
    size_t low = 0, high = sorted->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (sorted->entry[middle].key < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct hm_entry *
hm_sorted_find(struct hm_sorted *sorted, uint64_t key)
{
    size_t at = hm_sorted_lower(sorted, key);

    return at < sorted->count && sorted->entry[at].key == key ? &sorted->entry[at] : NULL;
}

static void
set_count(struct hm_sorted *sorted, size_t count)
{
    __atomic_store_n(&sorted->count, count,
                     __ATOMIC_RELAXED); /* who reads it unlocked wants a hint */
}

bool
hm_sorted_insert(struct hm_sorted *sorted, const struct hm_entry *entry)
{
    size_t at = hm_sorted_lower(sorted, entry->key);

    if (sorted->count == sorted->room) {
        size_t room = sorted->room + sorted->room / 2 + GROW_ENTRIES;
        struct hm_entry *moved = realloc(sorted->entry, room * sizeof(*moved));

        if (moved == NULL)
            return false;
        sorted->entry = moved;
        sorted->room = room;
    }
    memmove(&sorted->entry[at + 1], &sorted->entry[at], (sorted->count - at) * sizeof(*entry));
    sorted->entry[at] = *entry;
    set_count(sorted, sorted->count + 1);
    return true;
}

void
hm_sorted_cut(struct hm_sorted *sorted, size_t from, size_t to)
{
    if (from == to)
        return;
    memmove(&sorted->entry[from], &sorted->entry[to],
            (sorted->count - to) * sizeof(sorted->entry[0]));
    set_count(sorted, sorted->count - (to - from));
}
