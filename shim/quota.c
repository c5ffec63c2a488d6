/*
 * Reserve, call, settle. Far from the cap a reservation is one compare-and-swap on a line of this process; close to it
 * NVML is asked first; and a refusal comes only after the dead are buried and the pools, ours and the others', trimmed.
 */
#include "quota.h"

#include "futex.h"
#include "ledger.h"
#include "log.h"
#include "overhead.h"
#include "pool.h"

#include <stdio.h>
#include <time.h>

#define TRIM_WAIT_MS 20

static uint32_t in_flight[HM_DEVICES]; /* calls of this process that are reserved and not settled */

/*
 * In flight until after the ledger says used by which kind, or free: a measurement must not mistake it for overhead. What
 * has no kind yet need not enter: as long as it is used, and of no kind, it shows by that (hm_quota_quiet).
 */
static void
enter(int device)
{
    __atomic_fetch_add(&in_flight[device], 1, __ATOMIC_ACQ_REL); /* pairs with hm_quota_quiet */
}

static void
leave(int device)
{
    __atomic_fetch_sub(&in_flight[device], 1, __ATOMIC_RELEASE); /* pairs with hm_quota_quiet */
}

static void
end(struct hm_charge *charge)
{
    if (charge->in_flight)
        leave(charge->device);
    charge->in_flight = false;
}

static void
count_kind(const struct hm_charge *charge, struct hm_use *use, int64_t bytes)
{
    if (charge->kind < HM_KINDS)
        __atomic_fetch_add(&use->kind_bytes[charge->kind], (uint64_t)bytes, __ATOMIC_RELAXED);
}

static struct hm_use *
own_use(int device)
{
    struct hm_slot *slot = hm_slot();

    return slot != NULL ? &slot->use[device] : NULL;
}

bool
hm_quota_quiet(int device)
{
    const struct hm_use *use = own_use(device);
    uint64_t settled = 0, used;

    if (use == NULL || __atomic_load_n(&in_flight[device], __ATOMIC_ACQUIRE) != 0)
        return use == NULL;
    for (int kind = 0; kind < HM_KINDS; kind++)
        settled += __atomic_load_n(&use->kind_bytes[kind], __ATOMIC_ACQUIRE);
    used = (uint32_t)__atomic_load_n(&use->grant, __ATOMIC_ACQUIRE) * (uint64_t)HM_UNIT_BYTES;
    return settled == used;
}

/* Another process of the tenant holds pool memory that it might trim. */
static bool
others_hold_pools(int device, const struct hm_use *mine)
{
    for (uint32_t i = 0; i < hm_slots(); i++) {
        const struct hm_slot *slot = &hm_tenant.usage->slot[i];
        const struct hm_use *use = &slot->use[device];

        if (use != mine && __atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) != 0 &&
            __atomic_load_n(&use->kind_bytes[HM_POOL], __ATOMIC_RELAXED) +
                    __atomic_load_n(&use->kind_bytes[HM_GRAPH], __ATOMIC_RELAXED) >
                0)
            return true;
    }
    return false;
}

/* What this process was granted may be used without asking: far from the cap, and the cap has not changed since. */
static bool
grant_is_good(int device)
{
    static uint32_t seen[HM_DEVICES]; /* the epoch of the limits page at the last look */
    uint32_t epoch = __atomic_load_n(&hm_tenant.limits->epoch, __ATOMIC_ACQUIRE);

    if (HM_LIKELY(__atomic_load_n(&seen[device], __ATOMIC_RELAXED) == epoch))
        return __atomic_load_n(&hm_tenant.usage->device[device].near, __ATOMIC_RELAXED) == HM_FAR;
    __atomic_store_n(&seen[device], epoch, __ATOMIC_RELAXED);
    return false;
}

/* Around each change of used: whoever measures can tell what may have been taken meanwhile (overhead.c). */
static void
ask(struct hm_use *use, uint32_t units)
{
    __atomic_fetch_add(&use->asked_bytes, (uint64_t)units * HM_UNIT_BYTES, __ATOMIC_ACQ_REL);
}

static void
answered(struct hm_use *use, uint32_t units)
{
    __atomic_fetch_add(&use->answered_bytes, (uint64_t)units * HM_UNIT_BYTES, __ATOMIC_ACQ_REL);
}

static bool
take_granted(struct hm_use *use, uint32_t units)
{
    bool taken;

    ask(use, units);
    taken = hm_ledger_take(use, units);
    answered(use, units);
    return taken;
}

static bool
grow(int device, struct hm_use *use, uint32_t units, uint64_t margin_bytes)
{
    bool grown;

    ask(use, units);
    grown = hm_ledger_grow(device, use, units, margin_bytes);
    answered(use, units);
    return grown;
}

/* Leaves at least HM_NEAR_BYTES free. Says in the page whether there is so much, for all processes of the tenant. */
static bool
take_far(int device, struct hm_use *use, uint32_t units)
{
    uint32_t *near = &hm_tenant.usage->device[device].near,
             was = __atomic_load_n(near, __ATOMIC_RELAXED);
    bool far;

    if (was == HM_DOUBT)
        hm_overhead_refresh(device);
    far = grow(device, use, units, HM_NEAR_BYTES);
    if (was != (far ? HM_FAR : HM_NEAR))
        __atomic_store_n(near, far ? HM_FAR : HM_NEAR, __ATOMIC_RELAXED);
    return far;
}

/* Ask the others to trim, and wait for room at most TRIM_WAIT_MS. */
static bool
wait_for_others(int device, struct hm_use *use, uint32_t units)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};

    if (!others_hold_pools(device, use))
        return false;
    hm_futex_ring(&hm_tenant.usage->trim);
    for (int i = 0; i < TRIM_WAIT_MS; i++) {
        nanosleep(&millisecond, NULL);
        if (grow(device, use, units, 0))
            return true;
    }
    return false;
}

/* Units for a call. hurry: take the first no for an answer. */
static bool
take(int device, struct hm_use *use, uint32_t units, bool hurry)
{
    if (HM_LIKELY(grant_is_good(device) && take_granted(use, units)) ||
        take_far(device, use, units))
        return true;
    hm_overhead_refresh(device);
    if (grow(device, use, units, 0))
        return true;
    if (hurry)
        return false;
    hm_region_bury();
    hm_pool_trim(device);
    hm_graph_trim(device);
    hm_overhead_refresh(device);
    return grow(device, use, units, 0) || wait_for_others(device, use, units);
}

static bool
reserve(struct hm_charge *charge, enum hm_kind kind, int device, uint64_t bytes, bool hurry)
{
    struct hm_use *use;
    uint32_t units;

    *charge = (struct hm_charge){.device = -1, .kind = kind};
    if (device < 0 || !hm_active())
        return true;
    use = own_use(device);
    units = hm_units(bytes);
    if (use == NULL || units == UINT32_MAX || !take(device, use, units, hurry))
        return false;
    charge->device = device;
    charge->bytes = (uint64_t)units * HM_UNIT_BYTES;
    if (kind == HM_KINDS)
        return true;
    enter(device);
    charge->in_flight = true;
    count_kind(charge, use, (int64_t)charge->bytes);
    return true;
}

bool
hm_quota_try(struct hm_charge *charge, enum hm_kind kind, int device, uint64_t bytes)
{
    return reserve(charge, kind, device, bytes, true);
}

bool
hm_quota_reserve(struct hm_charge *charge, enum hm_kind kind, int device, uint64_t bytes)
{
    if (reserve(charge, kind, device, bytes, false))
        return true;
    hm_quota_refused(device, bytes);
    return false;
}

void
hm_quota_refused(int device, uint64_t bytes)
{
    static uint32_t logged; /* a bit for each device */
    struct hm_use *use = own_use(device);
    uint64_t charged = hm_ledger_charged(device), cap = hm_cap_bytes(device), mine = 0;

    if (use != NULL) {
        __atomic_fetch_add(&use->denials, 1, __ATOMIC_RELAXED);
        mine = (uint32_t)__atomic_load_n(&use->grant, __ATOMIC_RELAXED) * (uint64_t)HM_UNIT_BYTES +
               __atomic_load_n(&use->overhead_bytes, __ATOMIC_RELAXED);
    }
    if (__atomic_fetch_or(&logged, 1u << device, __ATOMIC_RELAXED) & 1u << device)
        return;
    hm_log("out of memory: %.1f MiB asked, %.1f left of %.1f MiB (%.1f held by this process, %.1f "
           "by others of %s, %d "
           "kept for modules); further refusals are counted, not logged",
           (double)bytes / HM_MIB, (double)hm_ledger_room(device) / HM_MIB, (double)cap / HM_MIB,
           (double)mine / HM_MIB, (double)(charged > mine ? charged - mine : 0) / HM_MIB,
           hm_tenant.limits->tenant, HM_RESERVE_BYTES / HM_MIB);
}

void
hm_quota_adjust(struct hm_charge *charge, uint64_t bytes)
{
    struct hm_use *use = charge->device >= 0 ? own_use(charge->device) : NULL;
    uint64_t whole = (uint64_t)hm_units(bytes) * HM_UNIT_BYTES;

    if (use == NULL || whole == charge->bytes)
        return;
    if (whole < charge->bytes) {
        hm_ledger_give(use, hm_units(charge->bytes - whole));
    } else {
        uint32_t units = hm_units(whole - charge->bytes);

        ask(use, units);
        if (!hm_ledger_take(use, units))
            hm_ledger_force(use, units);
        answered(use, units);
    }
    count_kind(charge, use, (int64_t)(whole - charge->bytes));
    charge->bytes = whole;
}

void
hm_quota_join(struct hm_charge *into, struct hm_charge *charge)
{
    if (charge->device < 0)
        return;
    into->bytes += charge->bytes;
    count_kind(into, own_use(into->device), (int64_t)charge->bytes);
    charge->bytes = 0;
}

void
hm_quota_release(const struct hm_charge *charge)
{
    struct hm_charge gone = *charge;

    hm_quota_adjust(&gone, 0);
    if (gone.device >= 0)
        end(&gone);
}

void
hm_quota_done(struct hm_charge *charge)
{
    if (charge->device >= 0)
        end(charge);
}

CUresult
hm_quota_settle(struct hm_charge *charge, enum hm_type type, uint64_t key, bool dies_with_context,
                CUresult result)
{
    struct hm_object object = {.key = key, .type = type};

    if (charge->device < 0)
        return result;
    if (result != CUDA_SUCCESS) {
        hm_quota_release(charge);
        return result;
    }
    if (dies_with_context)
        REAL(cuCtxGetCurrent(&object.context));
    hm_quota_done(charge);
    object.charge = *charge;
    if (!hm_object_put(&object))
        hm_log_once(
            "no host memory to remember an allocation: it stays charged until this process ends");
    return result;
}

/* A free is a call in flight, too: between the driver's free and ours the ledger says more than the card. */
CUresult
hm_object_freed(bool known, const struct hm_object *object, CUresult result)
{
    struct hm_object again;

    if (!known)
        return result;
    again = *object;
    if (result == CUDA_SUCCESS || again.charge.device < 0) {
        hm_quota_release(&again.charge);
        return result;
    }
    hm_quota_done(&again.charge);
    hm_object_put(&again);
    return result;
}

/* object.c calls this for what it hands out to be freed. */
void
hm_quota_begin(struct hm_charge *charge)
{
    if (charge->device < 0)
        return;
    enter(charge->device);
    charge->in_flight = true;
}
