#include "ledger.h"

#define HEADROOM_BYTES \
    67108864 /* granted beyond the need while far from the cap, so that most grants need no lock */

static uint64_t
granted(uint64_t word)
{
    return word >> 32;
}

static uint64_t
used(uint64_t word)
{
    return word & UINT32_MAX;
}

uint32_t
hm_units(uint64_t bytes)
{
    uint64_t units = bytes / HM_UNIT_BYTES + (bytes % HM_UNIT_BYTES != 0);

    return units < UINT32_MAX ? (uint32_t)units : UINT32_MAX;
}

bool
hm_ledger_take(struct hm_use *use, uint32_t units)
{
    uint64_t word = __atomic_load_n(&use->grant, __ATOMIC_RELAXED);

    do {
        if (used(word) + units > granted(word))
            return false;
    } while (!__atomic_compare_exchange_n(&use->grant, &word, word + units, true, __ATOMIC_ACQ_REL,
                                          __ATOMIC_RELAXED));
    return true; /* the release pairs with the acquire of whoever calls the surplus in */
}

void
hm_ledger_give(struct hm_use *use, uint32_t units)
{
    uint64_t word = __atomic_load_n(&use->grant, __ATOMIC_RELAXED);
    uint64_t less;

    do
        less = used(word) >= units ? word - units : granted(word) << 32;
    while (!__atomic_compare_exchange_n(&use->grant, &word, less, true, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED));
}

uint64_t
hm_cap_bytes(int device)
{
    uint64_t cap =
        __atomic_load_n(&hm_tenant.limits->device[device].memory_bytes, __ATOMIC_ACQUIRE);

    return cap != 0 ? cap : UINT64_MAX;
}

/*
 * No identity of an allocation crosses processes, so orphans are what one process imported beyond all that the others
 * still own of what they exported; the largest such difference, since several may hold the same.
 */
uint64_t
hm_ledger_orphans(int device)
{
    uint64_t exported = 0, most = 0;

    for (uint32_t i = 0; i < hm_slots(); i++) {
        const struct hm_slot *slot = &hm_tenant.usage->slot[i];
        const struct hm_use *use = &slot->use[device];
        uint64_t out, in;

        if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) ==
            0) /* pairs with the release in fill_slot, clear_slot */
            continue;
        out = __atomic_load_n(&use->exported_bytes, __ATOMIC_RELAXED);
        in = __atomic_load_n(&use->imported_bytes, __ATOMIC_RELAXED);
        exported += out;
        most = in > 0 && in + out > most ? in + out : most;
    }
    return most > exported ? most - exported : 0;
}

/* Sum of (grants or uses) and overhead over the taken slots, and the orphans. */
static uint64_t
sum(int device, bool of_grants)
{
    uint64_t bytes = hm_ledger_orphans(device);

    for (uint32_t i = 0; i < hm_slots(); i++) {
        const struct hm_slot *slot = &hm_tenant.usage->slot[i];
        const struct hm_use *use = &slot->use[device];
        uint64_t word;

        if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) == 0)
            continue;
        word = __atomic_load_n(&use->grant, __ATOMIC_ACQUIRE);
        bytes += (of_grants ? granted(word) : used(word)) * HM_UNIT_BYTES;
        bytes += __atomic_load_n(&use->overhead_bytes, __ATOMIC_RELAXED);
    }
    return bytes;
}

uint64_t
hm_ledger_charged(int device)
{
    return sum(device, false);
}

uint64_t
hm_ledger_room(int device)
{
    uint64_t cap = hm_cap_bytes(device), taken = sum(device, false) + HM_RESERVE_BYTES;

    if (cap == UINT64_MAX)
        return UINT64_MAX;
    return cap > taken ? cap - taken : 0;
}

/* Lower every grant to what is used. The ledger lock is held, so that nobody raises one meanwhile. */
static void
call_in(int device)
{
    for (uint32_t i = 0; i < hm_slots(); i++) {
        struct hm_use *use = &hm_tenant.usage->slot[i].use[device];
        uint64_t word = __atomic_load_n(&use->grant, __ATOMIC_RELAXED);

        while (granted(word) > used(word) &&
               !__atomic_compare_exchange_n(&use->grant, &word, used(word) << 32 | used(word), true,
                                            __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            ; /* pairs with the exchange in hm_ledger_take: the owner either took it before, or sees it gone */
    }
}

/*
 * What may still be granted under the cap, surplus grants counted as taken. Less than nothing where one was forced: what
 * was given back since must not be taken again as if it were granted. The lock is held.
 */
static int64_t
grantable(int device)
{
    uint64_t cap = hm_cap_bytes(device), taken = sum(device, true) + HM_RESERVE_BYTES;

    return (int64_t)(cap < INT64_MAX ? cap : INT64_MAX) - (int64_t)taken;
}

/* Raise the grant by what is missing for units, and take them, in one exchange. The lock is held. */
static bool
raise_and_take(struct hm_use *use, uint32_t units, int64_t free_bytes, int64_t margin_bytes)
{
    uint64_t word = __atomic_load_n(&use->grant, __ATOMIC_RELAXED);

    for (;;) {
        uint64_t want = used(word) + units;
        uint64_t missing = want > granted(word) ? want - granted(word) : 0;
        int64_t bytes = (int64_t)(missing * HM_UNIT_BYTES);
        uint64_t extra = 0;

        if (want >= UINT32_MAX || bytes > free_bytes || free_bytes - bytes < margin_bytes)
            return false;
        if (margin_bytes > 0 && free_bytes - bytes >= margin_bytes + HEADROOM_BYTES &&
            granted(word) + missing + HEADROOM_BYTES / HM_UNIT_BYTES < UINT32_MAX)
            extra = HEADROOM_BYTES / HM_UNIT_BYTES;
        if (__atomic_compare_exchange_n(&use->grant, &word,
                                        (granted(word) + missing + extra) << 32 | want, true,
                                        __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return true;
    }
}

bool
hm_ledger_grow(int device, struct hm_use *use, uint32_t units, uint64_t margin_bytes)
{
    bool grown;

    if (!hm_ledger_lock())
        return false;
    grown = raise_and_take(use, units, grantable(device), (int64_t)margin_bytes);
    if (!grown) {
        call_in(device);
        grown = raise_and_take(use, units, grantable(device), (int64_t)margin_bytes);
    }
    hm_ledger_unlock();
    return grown;
}

void
hm_ledger_force(struct hm_use *use, uint32_t units)
{
    bool locked = hm_ledger_lock(); /* it has happened: with the lock or without */

    raise_and_take(use, units, INT64_MAX, 0);
    if (locked)
        hm_ledger_unlock();
}

static uint64_t
moved(uint64_t value, int64_t by)
{
    return by < 0 && value < (uint64_t)-by ? 0 : value + (uint64_t)by;
}

bool
hm_ledger_overhead(int device, struct hm_use *use, int64_t bytes, bool force)
{
    bool fits, locked = hm_ledger_lock();

    if (!locked && !force && bytes > 0)
        return false;
    fits = force || bytes <= 0 || bytes <= grantable(device);
    if (!fits) {
        call_in(device);
        fits = bytes <= grantable(device);
    }
    if (fits) {
        __atomic_store_n(&use->overhead_bytes, moved(use->overhead_bytes, bytes), __ATOMIC_RELAXED);
        __atomic_store_n(&use->ahead_bytes, moved(use->ahead_bytes, bytes), __ATOMIC_RELAXED);
    }
    if (locked)
        hm_ledger_unlock();
    return fits;
}
