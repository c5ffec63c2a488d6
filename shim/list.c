/* Of what NVML lists about processes, the part that is the tenant's. */
#include "ledger.h"
#include "view.h"

#include <string.h>
#include <sys/stat.h>

static uint64_t
pid_namespace(void)
{
    struct stat status;

    return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

/* The slot at index i, if it is a process's of our PID namespace: other pids mean nothing here. */
static const struct hm_slot *
visible_slot(uint32_t i, uint64_t space)
{
    const struct hm_slot *slot = &hm_tenant.usage->slot[i];

    /* the acquire pairs with the release of whoever takes or clears the slot */
    return __atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) != 0 && slot->pid_ns == space ? slot
                                                                                         : NULL;
}

static const struct hm_slot *
slot_of(unsigned int pid, uint64_t space)
{
    for (uint32_t i = 0; i < hm_slots(); i++) {
        const struct hm_slot *slot = visible_slot(i, space);

        if (slot != NULL && slot->pid == pid)
            return slot;
    }
    return NULL;
}

static uint64_t
slot_bytes(const struct hm_slot *slot, int device)
{
    const struct hm_use *use = &slot->use[device];
    uint64_t used = (uint32_t)__atomic_load_n(&use->grant, __ATOMIC_ACQUIRE);

    return used * HM_UNIT_BYTES + __atomic_load_n(&use->overhead_bytes, __ATOMIC_RELAXED);
}

static char *
entry(const struct hm_list *list, unsigned int i)
{
    return (char *)list->entries + i * list->size;
}

static void
put(const struct hm_list *list, unsigned int i, size_t at, const void *value, size_t bytes)
{
    memcpy(entry(list, i) + at, value, bytes);
}

void
hm_list_keep(struct hm_list *list, int device)
{
    bool capped = hm_cap_bytes(device) != UINT64_MAX;
    uint64_t space = pid_namespace();
    unsigned int kept = 0;

    hm_view_bury(NULL);
    for (unsigned int i = 0; i < list->count; i++) {
        const struct hm_slot *slot;
        unsigned int pid;
        uint64_t bytes;

        memcpy(&pid, entry(list, i) + list->pid_at, sizeof(pid));
        slot = slot_of(pid, space);
        if (slot == NULL)
            continue;
        memmove(entry(list, kept), entry(list, i), list->size);
        bytes = slot_bytes(slot, device);
        if (list->has_bytes && capped)
            put(list, kept, list->bytes_at, &bytes, sizeof(bytes));
        kept++;
    }
    list->count = kept;
}

/* Older drivers list host pids in a container, or nothing. Other fields are "not available". */
static void
fill_from_slots(struct hm_list *list, int device)
{
    uint64_t space = pid_namespace();

    for (uint32_t i = 0; i < hm_slots(); i++) {
        const struct hm_slot *slot = visible_slot(i, space);
        uint64_t bytes = slot != NULL ? slot_bytes(slot, device) : 0;

        if (bytes == 0)
            continue;
        memset(entry(list, list->count), 0xff, list->size);
        put(list, list->count, list->pid_at, &slot->pid, sizeof(slot->pid));
        put(list, list->count, list->bytes_at, &bytes, sizeof(bytes));
        list->count++;
    }
}

bool
hm_list_is_whole(nvmlDevice_t handle, const unsigned int *count)
{
    return count == NULL || hm_view_device(handle) < 0;
}

nvmlReturn_t
hm_list_answer(struct hm_list *list, nvmlDevice_t handle, nvmlReturn_t result,
               nvmlReturn_t nothing_asked, unsigned int *count, void *entries)
{
    int device = hm_view_device(handle);
    unsigned int room = *count;

    if (result == NVML_ERROR_INSUFFICIENT_SIZE)
        list->count = 0; /* more than fit into our array, and nothing was written */
    else if (result != NVML_SUCCESS)
        return result;
    hm_list_keep(list, device);
    if (list->count == 0 && list->from_slots)
        fill_from_slots(list, device);
    *count = list->count;
    if (list->count == 0)
        return NVML_SUCCESS;
    if (room < list->count)
        return room == 0 ? nothing_asked : NVML_ERROR_INSUFFICIENT_SIZE;
    if (entries == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    memcpy(entries, list->entries, list->count * list->size);
    return NVML_SUCCESS;
}
