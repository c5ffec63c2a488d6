#include "cuda_stream.h"

#include <string.h>

#include "cuda_array.h"
#include "cuda_memory.h"

/* No operation moves more than this: a simulated 40 GiB memset must not fill the host. */
#define EFFECT_MAX_BYTES (256 * HM_MIB)

/* The bytes of a range from `address` on, or 0: an illegal address. */
static uint64_t
room_at(uint64_t address)
{
    const struct hm_range *range = hm_range_at(address);

    hm_managed_touch(address);
    return range != NULL && hm_range_usable(range) ? range->address + range->bytes - address : 0;
}

static void
fill(const struct hm_op *op, struct hm_context *ctx)
{
    uint64_t count = op->fill.count;

    if (count == 0)
        return;
    if (room_at(op->fill.address) < count) {
        ctx->broken = CUDA_ERROR_ILLEGAL_ADDRESS;
        return;
    }
    if (count > EFFECT_MAX_BYTES)
        count = EFFECT_MAX_BYTES;
    memset((void *)op->fill.address, op->fill.value, count);
}

static void
set_row(char *row, const CUDA_MEMSET_NODE_PARAMS *set, size_t count)
{
    for (size_t i = 0; i < count; i++)
        memcpy(row + i * set->elementSize, &set->value, set->elementSize);
}

static void
set(const CUDA_MEMSET_NODE_PARAMS *set)
{
    uint64_t budget = EFFECT_MAX_BYTES / set->elementSize;

    room_at(set->dst);
    for (size_t row = 0; row < set->height && budget > 0; row++) {
        size_t count = set->width < budget ? set->width : budget;
        char *start = (char *)set->dst + row * set->pitch;

        if (set->elementSize == 1)
            memset(start, (int)set->value, count);
        else
            set_row(start, set, count);
        budget -= count;
    }
}

struct side {
    char *start;
    size_t pitch;
    size_t slice; /* bytes from one layer to the next */
};

static struct side
source(const CUDA_MEMCPY3D_PEER *copy)
{
    struct side side = {.pitch = copy->srcPitch, .slice = copy->srcPitch * copy->srcHeight};

    if (copy->srcMemoryType == CU_MEMORYTYPE_ARRAY)
        side.start = hm_array_data(copy->srcArray, &side.pitch, &side.slice);
    else if (copy->srcMemoryType == CU_MEMORYTYPE_HOST)
        side.start = (char *)copy->srcHost;
    else
        side.start = (char *)copy->srcDevice;
    if (side.start != NULL)
        side.start += copy->srcXInBytes + copy->srcY * side.pitch + copy->srcZ * side.slice;
    return side;
}

static struct side
target(const CUDA_MEMCPY3D_PEER *copy)
{
    struct side side = {.pitch = copy->dstPitch, .slice = copy->dstPitch * copy->dstHeight};

    if (copy->dstMemoryType == CU_MEMORYTYPE_ARRAY)
        side.start = hm_array_data(copy->dstArray, &side.pitch, &side.slice);
    else if (copy->dstMemoryType == CU_MEMORYTYPE_HOST)
        side.start = copy->dstHost;
    else
        side.start = (char *)copy->dstDevice;
    if (side.start != NULL)
        side.start += copy->dstXInBytes + copy->dstY * side.pitch + copy->dstZ * side.slice;
    return side;
}

static void
copy(const CUDA_MEMCPY3D_PEER *copy)
{
    struct side from = source(copy);
    struct side to = target(copy);
    uint64_t budget = EFFECT_MAX_BYTES;

    if (from.start == NULL || to.start == NULL)
        return;
    room_at((uint64_t)to.start);
    for (size_t layer = 0; layer < copy->Depth; layer++) {
        for (size_t row = 0; row < copy->Height && budget > 0; row++) {
            size_t bytes = copy->WidthInBytes < budget ? copy->WidthInBytes : budget;

            memmove(to.start + layer * to.slice + row * to.pitch,
                    from.start + layer * from.slice + row * from.pitch, bytes);
            budget -= bytes;
        }
    }
}

void
hm_effect_run(const struct hm_op *op, struct hm_context *ctx)
{
    switch (op->kind) {
    case HM_OP_FILL:
        fill(op, ctx);
        break;
    case HM_OP_SET:
        set(&op->set);
        break;
    case HM_OP_COPY:
        copy(&op->copy);
        break;
    default:
        break;
    }
}
