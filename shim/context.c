#include "context.h"

#include "helper.h"
#include "image.h"
#include "ledger.h"
#include "local.h"
#include "log.h"
#include "overhead.h"
#include "pool.h"

#include <string.h>

static uint32_t creating[HM_DEVICES]; /* contexts being made; atomic */
static uint32_t services;             /* that are charged in each context; atomic */

/* What the services of image.h take in each context (H100, driver 580: bench/results/late-h100.json). */
static uint64_t
service_bytes(uint32_t bits)
{
    uint64_t mib = 0;

    if (bits & HM_SERVICE_MALLOC)
        mib = 148; /* with the others in it */
    else if (bits & HM_SERVICE_ASSERT)
        mib = 92;
    else if (bits & HM_SERVICE_PRINTF)
        mib = 64;
    return mib * HM_MIB;
}

/* As last measured; 0: not yet. */
static uint64_t
measured_bytes(int device)
{
    return __atomic_load_n(&hm_tenant.usage->device[device].context_bytes, __ATOMIC_RELAXED);
}

static uint64_t
predicted_bytes(int device)
{
    uint64_t bytes = measured_bytes(device);

    if (bytes == 0)
        bytes = hm_tenant.limits->device[device].context_bytes;
    return (bytes != 0 ? bytes : HM_CONTEXT_BYTES) + service_bytes(services);
}

uint64_t
hm_context_least_bytes(int device, const struct hm_use *use)
{
    uint64_t bytes = measured_bytes(device);
    uint32_t bits = __atomic_load_n(&services, __ATOMIC_RELAXED);

    return __atomic_load_n(&use->contexts, __ATOMIC_RELAXED) *
           (bytes + (bytes > 0 ? service_bytes(bits) : 0));
}

bool
hm_context_creating(int device)
{
    return __atomic_load_n(&creating[device], __ATOMIC_ACQUIRE) != 0;
}

bool
hm_context_begin(int device)
{
    struct hm_slot *mine;
    uint64_t bytes;

    if (device < 0)
        return true;
    mine = hm_slot();
    bytes = predicted_bytes(device);
    if (mine == NULL)
        return false;
    hm_helper_start();
    __atomic_fetch_add(&creating[device], 1, __ATOMIC_ACQ_REL);
    if (hm_ledger_overhead(device, &mine->use[device], (int64_t)bytes, false))
        return true;
    hm_region_bury();
    hm_pool_trim(device);
    if (hm_ledger_overhead(device, &mine->use[device], (int64_t)bytes, false))
        return true;
    __atomic_fetch_sub(&creating[device], 1, __ATOMIC_ACQ_REL);
    hm_log_once("a CUDA context takes about %.0f MiB of the card, and only %.0f of the %.0f MiB of "
                "%s are left; raise the memory cap",
                (double)bytes / HM_MIB, (double)hm_ledger_room(device) / HM_MIB,
                (double)hm_cap_bytes(device) / HM_MIB, hm_tenant.limits->tenant);
    hm_quota_refused(device, bytes);
    return false;
}

void
hm_context_end(int device, bool made)
{
    struct hm_slot *mine = device >= 0 ? hm_slot() : NULL;

    if (mine == NULL)
        return;
    if (made)
        __atomic_fetch_add(&mine->use[device].contexts, 1, __ATOMIC_RELAXED);
    else
        hm_ledger_overhead(device, &mine->use[device], -(int64_t)predicted_bytes(device), true);
    __atomic_fetch_sub(&creating[device], 1, __ATOMIC_ACQ_REL);
    if (made)
        hm_helper_measure(device);
}

/* The last context of this process on a device is gone. */
static void
forget_context(int device, struct hm_slot *mine)
{
    struct hm_use *use = &mine->use[device];

    hm_local_forget(device);
    hm_ledger_overhead(device, use,
                       -(int64_t)__atomic_load_n(&use->overhead_bytes, __ATOMIC_RELAXED), true);
}

void
hm_context_gone(int device)
{
    struct hm_slot *mine = device >= 0 ? hm_slot() : NULL;

    if (mine == NULL)
        return;
    if (__atomic_load_n(&mine->use[device].contexts, __ATOMIC_RELAXED) > 0 &&
        __atomic_sub_fetch(&mine->use[device].contexts, 1, __ATOMIC_RELAXED) == 0)
        forget_context(device, mine);
    hm_overhead_refresh(
        device); /* what the driver keeps after its last context is still on the card */
}

bool
hm_context_services_fit(void)
{
    uint32_t before = __atomic_load_n(&services, __ATOMIC_RELAXED), now = hm_image_services();
    uint64_t more = service_bytes(now | before) - service_bytes(before);
    struct hm_slot *mine = more > 0 ? hm_slot() : NULL;

    for (uint32_t i = 0; mine != NULL && i < hm_tenant.limits->device_count; i++) {
        if (__atomic_load_n(&mine->use[i].contexts, __ATOMIC_RELAXED) == 0 ||
            hm_ledger_overhead((int)i, &mine->use[i], (int64_t)more, false))
            continue;
        hm_quota_refused((int)i, more);
        return false;
    }
    __atomic_fetch_or(&services, now, __ATOMIC_RELAXED);
    return true;
}

void
hm_context_after_fork_child(void)
{
    memset(creating, 0, sizeof(creating));
}
