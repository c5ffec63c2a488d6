#include "view.h"

#include "ledger.h"
#include "pool.h"

#define HANDLES 128 /* that are remembered; further ones are looked up each time */

/* Handles of NVML never change their meaning, also not over nvmlShutdown, so this only grows. */
static struct {
    nvmlDevice_t handle; /* written last */
    int index;
} known[HANDLES];
static unsigned int known_count; /* entries that somebody writes or wrote */

static uint64_t
least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void
hm_view_bury(const struct hm_slot *mine)
{
    const struct hm_usage *usage = hm_tenant.usage;
    uint32_t high = hm_slots();

    for (uint32_t i = 0; i < high; i++) {
        if (&usage->slot[i] == mine ||
            __atomic_load_n(&usage->slot[i].taken, __ATOMIC_ACQUIRE) == 0)
            continue; /* the acquire pairs with the release of whoever takes or clears the slot */
        hm_region_bury();
        return;
    }
}

bool
hm_view_read(int device, const struct hm_slot *mine, uint64_t card_total, uint64_t card_free,
             struct hm_view *view)
{
    uint64_t cap, charged, taken;

    if (device < 0 || (cap = hm_cap_bytes(device)) == UINT64_MAX)
        return false;
    hm_pool_refresh(device);
    hm_graph_refresh(device);
    hm_view_bury(mine);
    charged = hm_ledger_charged(device);
    taken = charged + HM_RESERVE_BYTES;
    view->total_bytes = least(cap, card_total);
    view->used_bytes = least(charged, view->total_bytes);
    view->free_bytes = least(cap > taken ? cap - taken : 0, card_free);
    taken = view->used_bytes + view->free_bytes;
    view->reserved_bytes = view->total_bytes > taken ? view->total_bytes - taken : 0;
    return true;
}

static int
look_up(nvmlDevice_t handle)
{
    char uuid[NVML_DEVICE_UUID_V2_BUFFER_SIZE] = "";
    unsigned int at;
    int index;

    if (REAL_NVML(nvmlDeviceGetUUID(handle, uuid, sizeof(uuid))) != NVML_SUCCESS)
        return -1;
    index = hm_device_by_uuid(uuid);
    at = __atomic_fetch_add(&known_count, 1, __ATOMIC_RELAXED);
    if (at < HANDLES) {
        known[at].index = index;
        __atomic_store_n(&known[at].handle, handle,
                         __ATOMIC_RELEASE); /* pairs with hm_view_device */
    } else {
        __atomic_store_n(&known_count, HANDLES, __ATOMIC_RELAXED);
    }
    return index;
}

int
hm_view_device(nvmlDevice_t handle)
{
    if (!hm_active() || handle == NULL)
        return -1;
    for (unsigned int i = 0; i < HANDLES; i++)
        if (__atomic_load_n(&known[i].handle, __ATOMIC_ACQUIRE) == handle) /* pairs with look_up */
            return known[i].index;
        else if (i >= __atomic_load_n(&known_count, __ATOMIC_RELAXED))
            break;
    return look_up(handle);
}
