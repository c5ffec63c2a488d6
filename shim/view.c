#include "view.h"

#include "futex.h"
#include "ledger.h"
#include "overhead.h"
#include "pool.h"

#include <errno.h>
#include <time.h>

#define HANDLES 128        /* that are remembered; further ones are looked up each time */
#define SHARE_NS 100000000 /* a share of GPU time is taken over at least this: slots last 20 ms */

/* A device's GPU time as this process last saw it. Who moves at_ns on writes the rest. */
static struct look {
    uint64_t at_ns; /* 0: never */
    uint64_t charged_ns;
    uint32_t percent; /* between the last two looks, and 1; 0: there was but one */
} looks[HM_DEVICES];

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

/*
 * What launches and modules took is in no ledger until somebody looks. It shows in the card's free memory, so NVML is
 * asked when that and what is charged no longer add up to what they did; vLLM sizes its KV cache by such differences.
 */
static void
look_at_overhead(int device, uint64_t card_free)
{
    static uint64_t sums[HM_DEVICES]; /* after the last look; atomic */

    if (card_free == UINT64_MAX ||
        card_free + hm_ledger_charged(device) == __atomic_load_n(&sums[device], __ATOMIC_RELAXED))
        return;
    hm_overhead_refresh(device);
    __atomic_store_n(&sums[device], card_free + hm_ledger_charged(device), __ATOMIC_RELAXED);
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
    if (mine != NULL)
        look_at_overhead(device, card_free);
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

/* By the gate that holds for the tenant, which line.c chooses by the same rule. */
static bool
is_metered(int device, uint64_t now_ns)
{
    const struct hm_limit *limit = &hm_tenant.limits->device[device];
    uint32_t percent = __atomic_load_n(&limit->time_percent, __ATOMIC_RELAXED);

    if (__atomic_load_n(&hm_tenant.limits->lease_ns, __ATOMIC_ACQUIRE) > now_ns)
        return (__atomic_load_n(&limit->gate.word, __ATOMIC_ACQUIRE) & HM_GATE_STATES) !=
               HM_GATE_FREE;
    return percent > 0 && percent < 100;
}

static uint64_t
charged_ns(int device)
{
    return __atomic_load_n(&hm_tenant.limits->device[device].gate.charged_ns, __ATOMIC_RELAXED) +
           __atomic_load_n(&hm_tenant.usage->device[device].gate.charged_ns, __ATOMIC_RELAXED);
}

static bool
claim(struct look *look, uint64_t at_ns, uint64_t now_ns)
{
    return __atomic_compare_exchange_n(&look->at_ns, &at_ns, now_ns, false, __ATOMIC_ACQ_REL,
                                       __ATOMIC_RELAXED);
}

static void
wait_until(uint64_t ns)
{
    struct timespec until = {.tv_sec = (time_t)(ns / 1000000000),
                             .tv_nsec = (long)(ns % 1000000000)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

/* The first look at all devices, since they are asked for one after the other. */
static void
look_first(uint64_t now_ns)
{
    for (uint32_t i = 0; i < hm_tenant.limits->device_count; i++)
        if (claim(&looks[i], 0, now_ns))
            __atomic_store_n(&looks[i].charged_ns, charged_ns((int)i), __ATOMIC_RELAXED);
}

static void
look_again(int device, uint64_t passed_ns)
{
    struct look *look = &looks[device];
    uint64_t now = charged_ns(device),
             before = __atomic_exchange_n(&look->charged_ns, now, __ATOMIC_RELAXED),
             had = now > before ? now - before : 0; /* lower, if somebody spoiled the page */

    if (had > passed_ns)
        had = passed_ns;
    __atomic_store_n(&look->percent, 1 + (uint32_t)(had * 100 / passed_ns), __ATOMIC_RELAXED);
}

unsigned int
hm_view_busy(int device, unsigned int card_percent)
{
    uint64_t now_ns = hm_now_ns(), at_ns;
    struct look *look = &looks[device];
    uint32_t percent;

    if (!is_metered(device, now_ns))
        return card_percent;
    look_first(now_ns);
    at_ns = __atomic_load_n(&look->at_ns, __ATOMIC_ACQUIRE);
    if (__atomic_load_n(&look->percent, __ATOMIC_RELAXED) == 0)
        wait_until(at_ns + SHARE_NS);
    now_ns = hm_now_ns();
    if (now_ns >= at_ns + SHARE_NS && claim(look, at_ns, now_ns))
        look_again(device, now_ns - at_ns);
    percent = __atomic_load_n(&look->percent, __ATOMIC_RELAXED);
    return percent > 0 ? percent - 1 : card_percent;
}
