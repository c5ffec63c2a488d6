#include "cuda_range.h"

#include <stdlib.h>
#include <string.h>

static struct hm_range **ranges; /* sorted by address */
static size_t range_count;
static size_t range_room;
static uint64_t last_id;

/* The number of ranges that start at or below the address. */
static size_t
position(uint64_t address)
{
    size_t low = 0;
    size_t high = range_count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (ranges[middle]->address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void
make_room(void)
{
    struct hm_range **larger;

    if (range_count < range_room)
        return;
    range_room = range_room == 0 ? 64 : range_room * 2;
    larger = hm_allocate(range_room * sizeof(*ranges));
    if (ranges != NULL)
        memcpy(larger, ranges, range_count * sizeof(*ranges));
    free(ranges);
    ranges = larger;
}

struct hm_range *
hm_range_add(const struct hm_range *range)
{
    size_t index = position(range->address);
    struct hm_range *added = hm_allocate(sizeof(*added));

    *added = *range;
    added->id = ++last_id;
    make_room();
    memmove(&ranges[index + 1], &ranges[index], (range_count - index) * sizeof(*ranges));
    ranges[index] = added;
    range_count++;
    return added;
}

void
hm_range_remove(struct hm_range *range)
{
    size_t index = position(range->address) - 1;

    range_count--;
    memmove(&ranges[index], &ranges[index + 1], (range_count - index) * sizeof(*ranges));
    free(range);
}

struct hm_range *
hm_range_at(uint64_t address)
{
    size_t index = position(address);

    if (index == 0 || address - ranges[index - 1]->address >= ranges[index - 1]->bytes)
        return NULL;
    return ranges[index - 1];
}

struct hm_range *
hm_range_of(const struct hm_context *ctx)
{
    for (size_t i = range_count; i > 0; i--) {
        if (ranges[i - 1]->ctx == ctx)
            return ranges[i - 1];
    }
    return NULL;
}
