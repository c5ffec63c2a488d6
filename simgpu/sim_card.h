/*
 * Physical memory of a card, in blocks of 2 MiB. All of these are called with the state locked.
 *
 * Private blocks belong to a process; objects are blocks that several processes hold together and
 * that live until the last living one lets go.
 */
#pragma once

#include "sim_state.h"

/* False when the card has not that much left, dead processes' memory already taken back. */
bool hm_card_take(uint32_t card, uint64_t blocks);
void hm_card_give(uint32_t card, uint64_t blocks);

/* Of the blocks taken, so many are managed memory (less, if negative), which NVML bills to nobody. */
void hm_card_unbill(uint32_t card, int64_t blocks);

/* A new object held by this process; false when card or table are full. */
bool hm_object_create(uint64_t id, uint32_t card, uint64_t blocks);
/* The living object of that id, or NULL. */
const struct hm_object *hm_object_find(uint64_t id);
void hm_object_hold(uint64_t id);
void hm_object_drop(uint64_t id);

/* What NVML shows for a process: its private blocks and the objects it pays for. */
uint64_t hm_card_slot_blocks(uint32_t card, int slot);

/* Recomputes blocks_used from the records. */
void hm_card_recount(uint32_t card);
/* Takes everything from a dead process. What others hold of it stays. */
void hm_card_drop_slot(int slot);

/* The identity of card `index`: fixed, so that tests can name it. */
#define HM_UUID_BYTES 16
void hm_card_uuid(uint32_t index, unsigned char uuid[HM_UUID_BYTES]);
#define HM_UUID_TEXT 41
void hm_card_uuid_text(uint32_t index, char text[HM_UUID_TEXT]);
/* Its PCI bus number; domain, device and function are 0. */
unsigned int hm_card_bus(uint32_t index);
#define HM_CARD_NAME "NVIDIA H100 80GB HBM3"
#define HM_CARD_SMS 132
