#include "sim_card.h"

#include <stdio.h>
#include <string.h>

#include "sim_internal.h"

bool
hm_card_take(uint32_t card, uint64_t blocks)
{
    struct hm_card *target = &hm_local.state->card[card];

    if (target->blocks_used + blocks > target->blocks_total)
        hm_process_reap();
    if (target->blocks_used + blocks > target->blocks_total)
        return false;
    hm_local.state->slots[hm_local.slot].blocks[card] += blocks;
    target->blocks_used += blocks;
    return true;
}

void
hm_card_give(uint32_t card, uint64_t blocks)
{
    hm_local.state->slots[hm_local.slot].blocks[card] -= blocks;
    hm_local.state->card[card].blocks_used -= blocks;
}

void
hm_card_unbill(uint32_t card, int64_t blocks)
{
    hm_local.state->slots[hm_local.slot].unbilled[card] += (uint64_t)blocks;
}

static struct hm_object *
object_by_id(uint64_t id)
{
    for (int i = 0; i < HM_OBJECTS; i++) {
        if (hm_local.state->objects[i].id == id)
            return &hm_local.state->objects[i];
    }
    return NULL;
}

static bool
holds(const struct hm_object *object, int slot)
{
    return (object->holders[slot / 64] >> (slot % 64) & 1) != 0;
}

static bool
is_held(const struct hm_object *object)
{
    for (int i = 0; i < HM_SLOTS / 64; i++) {
        if (object->holders[i] != 0)
            return true;
    }
    return false;
}

bool
hm_object_create(uint64_t id, uint32_t card, uint64_t blocks)
{
    struct hm_card *target = &hm_local.state->card[card];
    struct hm_object *object = object_by_id(0);

    if (target->blocks_used + blocks > target->blocks_total)
        hm_process_reap();
    if (object == NULL || target->blocks_used + blocks > target->blocks_total)
        return false;
    *object = (struct hm_object){.card = (int32_t)card, .payer = hm_local.slot, .blocks = blocks};
    object->holders[hm_local.slot / 64] = 1ull << (hm_local.slot % 64);
    object->id = id;
    target->blocks_used += blocks;
    return true;
}

const struct hm_object *
hm_object_find(uint64_t id)
{
    return id == 0 ? NULL : object_by_id(id);
}

void
hm_object_hold(uint64_t id)
{
    struct hm_object *object = object_by_id(id);

    object->holders[hm_local.slot / 64] |= 1ull << (hm_local.slot % 64);
}

/* The one that holds it, -1 if there are several. */
static int
only_holder(const struct hm_object *object)
{
    int only = -1;

    for (int slot = 0; slot < HM_SLOTS; slot++) {
        if (holds(object, slot) && only >= 0)
            return -1;
        if (holds(object, slot))
            only = slot;
    }
    return only;
}

static void
object_release(struct hm_object *object, int slot)
{
    object->holders[slot / 64] &= ~(1ull << (slot % 64));
    if (object->payer == slot || object->payer < 0)
        object->payer = only_holder(object);
    if (is_held(object))
        return;
    hm_local.state->card[object->card].blocks_used -= object->blocks;
    object->id = 0;
}

void
hm_object_drop(uint64_t id)
{
    object_release(object_by_id(id), hm_local.slot);
}

uint64_t
hm_card_slot_blocks(uint32_t card, int slot)
{
    const struct hm_slot *owner = &hm_local.state->slots[slot];
    uint64_t blocks = owner->blocks[card] - owner->unbilled[card];

    for (int i = 0; i < HM_OBJECTS; i++) {
        const struct hm_object *object = &hm_local.state->objects[i];

        if (object->id != 0 && object->card == (int32_t)card && object->payer == slot)
            blocks += object->blocks;
    }
    return blocks;
}

void
hm_card_recount(uint32_t card)
{
    uint64_t used = 0;

    for (int slot = 0; slot < HM_SLOTS; slot++)
        used += hm_local.state->slots[slot].blocks[card];
    for (int i = 0; i < HM_OBJECTS; i++) {
        const struct hm_object *object = &hm_local.state->objects[i];

        if (object->id != 0 && object->card == (int32_t)card)
            used += object->blocks;
    }
    hm_local.state->card[card].blocks_used = used;
}

void
hm_card_drop_slot(int slot)
{
    struct hm_slot *owner = &hm_local.state->slots[slot];

    for (uint32_t card = 0; card < hm_local.state->cards; card++) {
        hm_local.state->card[card].blocks_used -= owner->blocks[card];
        owner->blocks[card] = 0;
        owner->unbilled[card] = 0;
    }
    for (int i = 0; i < HM_OBJECTS; i++) {
        struct hm_object *object = &hm_local.state->objects[i];

        if (object->id != 0 && holds(object, slot))
            object_release(object, slot);
    }
}

unsigned int
hm_card_bus(uint32_t index)
{
    return index + 1;
}

void
hm_card_uuid(uint32_t index, unsigned char uuid[HM_UUID_BYTES])
{
    static const unsigned char first[HM_UUID_BYTES] = {
        0x5a, 0x1e, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0,
    };

    memcpy(uuid, first, HM_UUID_BYTES);
    uuid[HM_UUID_BYTES - 1] = (unsigned char)index;
}

void
hm_card_uuid_text(uint32_t index, char text[HM_UUID_TEXT])
{
    unsigned char uuid[HM_UUID_BYTES];
    int length = snprintf(text, HM_UUID_TEXT, "GPU-");

    hm_card_uuid(index, uuid);
    for (int i = 0; i < HM_UUID_BYTES; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;

        length += snprintf(text + length, (size_t)(HM_UUID_TEXT - length), dash ? "-%02x" : "%02x",
                           uuid[i]);
    }
}
