/*
 * What a tenant is shown of its devices. One definition for the hooks of CUDA and of NVML, so that
 * all figures agree:
 *
 *   total     the cap
 *   used      what is charged: the sum of the process list
 *   free      what can still be allocated, or less if the card itself has less
 *   reserved  the rest: at least HM_RESERVE_BYTES, as long as nothing is over the cap
 */
#pragma once
#include "tenant.h"

struct hm_view {
    uint64_t total_bytes;
    uint64_t used_bytes;
    uint64_t free_bytes;
    uint64_t reserved_bytes;
};

/*
 * The view of a device, given what the card itself has (UINT64_MAX: not known). mine is the slot of
 * this process, NULL if it need not have one; with one, and the card's free memory known, what
 * launches took is looked at first. False: show the card as it is, since it is not capped or (device -1) not
 * the tenant's.
 */
bool hm_view_read(int device, const struct hm_slot *mine, uint64_t card_total, uint64_t card_free,
                  struct hm_view *view);

/*
 * The tenant's share of a device's GPU time, in percent, since this process last asked, but over a tenth of a second
 * at least; the first call takes as long, and holds no lock. While nothing is metered it is what the card says.
 */
unsigned int hm_view_busy(int device, unsigned int card_percent);

/* Clear the slots of the dead, unless this process is alone in the tenant. */
void hm_view_bury(const struct hm_slot *mine);

/* The index in the tenant of a handle of NVML; -1: not the tenant's, or no tenant is active. */
int hm_view_device(nvmlDevice_t handle);

/* A list about processes, in any of NVML's structures: a pid, maybe the bytes that it holds. */
struct hm_list {
    void *entries;
    unsigned int count; /* before NVML is asked: the room in entries */
    size_t size;        /* of one entry */
    size_t pid_at;
    size_t bytes_at;
    bool has_bytes;
    bool from_slots; /* where NVML shows none of ours, the slots say who uses the device */
};

/* The list in an array of NVML's structures, with and without bytes. */
#define HM_LIST(array, ...)                           \
    {.entries = (array),                              \
     .count = HM_SLOTS,                               \
     .size = sizeof((array)[0]),                      \
     .pid_at = offsetof(__typeof__((array)[0]), pid), \
     __VA_ARGS__}
#define HM_LIST_BYTES(array, field) \
    HM_LIST(array, .bytes_at = offsetof(__typeof__((array)[0]), field), .has_bytes = true)

/* True if NVML's own answer is to be given: not the tenant's device, or it will be a refusal. */
bool hm_list_is_whole(nvmlDevice_t handle, const unsigned int *count);

/* Keep the processes of the tenant, with the bytes that the ledger has for them. */
void hm_list_keep(struct hm_list *list, int device);

/*
 * Answer a call as NVML would if there were no other processes: list is what NVML answered with
 * result, count and entries are the caller's. nothing_asked is what NVML says to a count of 0 when
 * there are entries.
 */
nvmlReturn_t hm_list_answer(struct hm_list *list, nvmlDevice_t handle, nvmlReturn_t result,
                            nvmlReturn_t nothing_asked, unsigned int *count, void *entries);
