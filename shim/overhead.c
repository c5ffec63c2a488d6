#include "overhead.h"

#include "futex.h"
#include "image.h"
#include "ledger.h"
#include "local.h"
#include "log.h"
#include "pool.h"
#include "quota.h"
#include "thread.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PROCESSES 1024 /* of one card, in one NVML answer */
#define HELPER_STACK_BYTES 262144
#define MEASURE_AGAIN_NS 20000000

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* one measurement at a time */
static nvmlProcessInfo_v2_t processes[PROCESSES];         /* under the mutex */
static nvmlDevice_t handles[HM_DEVICES];                  /* under the mutex */
static bool nvml_works;                                   /* after nvml_ready */
static bool nvml_warm;                      /* NVML was asked once and answers at once; atomic */
static uint32_t unmeasured;                 /* a bit for each device with a new context; atomic */
static uint32_t creating[HM_DEVICES];       /* contexts being made; atomic */
static uint64_t measured_bytes[HM_DEVICES]; /* our overhead as last measured exactly; atomic */
static uint32_t services;                   /* that are charged in each context; atomic */

static void
nvml_init(void)
{
    nvml_works = hm_resolve_nvml() && REAL_NVML(nvmlInit_v2()) == NVML_SUCCESS;
    if (!nvml_works)
        hm_log_once("NVML does not answer; context sizes are estimated");
}

static bool
nvml_ready(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, nvml_init);
    return nvml_works;
}

/* The processes on a device, into `processes`. -1: NVML can't say. The mutex is held. */
static int
list_processes(int device)
{
    unsigned int count = PROCESSES;
    nvmlReturn_t result;

    if (!nvml_ready())
        return -1;
    if (handles[device] == NULL &&
        REAL_NVML(nvmlDeviceGetHandleByUUID(hm_tenant.limits->device[device].uuid,
                                            &handles[device])) != NVML_SUCCESS)
        return -1;
    if (!hm_missing((const void *)real.nvmlDeviceGetComputeRunningProcesses_v3))
        result =
            REAL_NVML(nvmlDeviceGetComputeRunningProcesses_v3(handles[device], &count, processes));
    else /* the same structure since driver 450 */
        result =
            REAL_NVML(nvmlDeviceGetComputeRunningProcesses_v2(handles[device], &count, processes));
    return result == NVML_SUCCESS ? (int)count : -1;
}

/* Footprint of a pid, bytes; UINT64_MAX: not listed. The mutex is held. */
static uint64_t
footprint(uint32_t pid, int count)
{
    for (int i = 0; i < count; i++)
        if (processes[i].pid == pid &&
            processes[i].usedGpuMemory != (unsigned long long)NVML_VALUE_NOT_AVAILABLE)
            return processes[i].usedGpuMemory;
    return UINT64_MAX;
}

/* What allocations hold, less the kinds that NVML bills to no process (driver 580: bench/probes/rules.c). */
static uint64_t
listed_bytes(const struct hm_use *use)
{
    uint64_t used =
        (uint32_t)__atomic_load_n(&use->grant, __ATOMIC_ACQUIRE) * (uint64_t)HM_UNIT_BYTES;
    uint64_t unlisted = __atomic_load_n(&use->kind_bytes[HM_MANAGED], __ATOMIC_RELAXED) +
                        __atomic_load_n(&use->kind_bytes[HM_EXTERNAL], __ATOMIC_RELAXED);

    return used > unlisted ? used - unlisted : 0;
}

/* What the slots said before NVML was asked. Under the mutex. */
static struct {
    uint32_t pid; /* 0: not a slot to look at */
    uint64_t answered, listed;
} before[HM_SLOTS];

static uint32_t
note_before(int device, uint64_t pid_ns)
{
    uint32_t high = hm_slots();

    for (uint32_t i = 0; i < high; i++) {
        const struct hm_slot *slot = &hm_tenant.usage->slot[i];

        before[i].pid = 0;
        if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) == 0 || slot->pid_ns != pid_ns)
            continue;
        before[i].pid = slot->pid;
        before[i].answered = __atomic_load_n(&slot->use[device].answered_bytes, __ATOMIC_ACQUIRE);
        before[i].listed = listed_bytes(&slot->use[device]);
    }
    return high;
}

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

static uint64_t
load(const uint64_t *value)
{
    return __atomic_load_n(value, __ATOMIC_RELAXED);
}

/* The contexts, and the services, which come with the first kernel that calls them: that may be yet to come. */
static uint64_t
least_overhead(int device, const struct hm_use *use)
{
    uint64_t context = load(&hm_tenant.usage->device[device].context_bytes);
    uint32_t bits = __atomic_load_n(&services, __ATOMIC_RELAXED);

    return __atomic_load_n(&use->contexts, __ATOMIC_RELAXED) *
           (context + (context > 0 ? service_bytes(bits) : 0));
}

/*
 * An orphan is in the tenant's sum already. NVML bills it to its importer as well, but only if nothing else holds it
 * (another importer, an exported descriptor that somebody left open), which nobody can tell (driver 580). So it is taken
 * for billed as long as the least overhead is left.
 */
static uint64_t
less_orphans(int device, const struct hm_use *use, uint64_t overhead, uint64_t least)
{
    uint64_t imported = load(&use->imported_bytes),
             orphans = imported > 0 ? hm_ledger_orphans(device) : 0;
    uint64_t beyond = overhead > least ? overhead - least : 0;

    orphans = orphans < imported ? orphans : imported;
    return overhead - (orphans < beyond ? orphans : beyond);
}

/* Charge what was measured, and what is reserved beyond it. The ledger lock is held. */
static void
charge_overhead(struct hm_use *use, uint64_t measured, uint64_t charged)
{
    __atomic_store_n(&use->overhead_bytes, charged, __ATOMIC_RELAXED);
    __atomic_store_n(&use->ahead_bytes, charged - measured, __ATOMIC_RELAXED);
}

/*
 * Overhead is the footprint less what allocations hold. While others allocate and free, what they hold at the moment of
 * NVML's answer is not known, but it is at most what they held before plus what they asked for since, or were asking for
 * then: that gives the overhead at least, and it is raised to that. It is written exactly, lower too, only by its owner
 * and when nothing of it was in flight. The ledger lock is held.
 */
static void
write_overhead(int device, uint32_t index, uint64_t footprint_bytes, uint64_t pending, bool exact)
{
    struct hm_use *use = &hm_tenant.usage->slot[index].use[device];
    uint64_t most = before[index].listed +
                    (__atomic_load_n(&use->asked_bytes, __ATOMIC_ACQUIRE) - before[index].answered);
    uint64_t overhead = footprint_bytes > most ? footprint_bytes - most : 0,
             least = least_overhead(device, use);

    overhead = less_orphans(device, use, overhead, least);
    if (exact) {
        __atomic_store_n(&measured_bytes[device], overhead, __ATOMIC_RELAXED);
        charge_overhead(use, overhead, (overhead < least ? least : overhead) + pending);
    } else if (overhead + pending > load(&use->overhead_bytes)) {
        charge_overhead(use, overhead, overhead + pending);
    }
}

/* Nothing was taken or given back by this process since note_before. */
static bool
is_unchanged(int device, const struct hm_slot *mine)
{
    uint32_t index = (uint32_t)(mine - hm_tenant.usage->slot);

    return hm_quota_quiet(device) && __atomic_load_n(&creating[device], __ATOMIC_ACQUIRE) == 0 &&
           before[index].answered ==
               __atomic_load_n(&mine->use[device].asked_bytes, __ATOMIC_ACQUIRE) &&
           before[index].listed == listed_bytes(&mine->use[device]);
}

static void
write_all(int device, int count, uint32_t high, const struct hm_slot *mine, uint64_t pending,
          bool quiet)
{
    for (uint32_t i = 0; i < high; i++) {
        const struct hm_slot *slot = &hm_tenant.usage->slot[i];
        uint64_t bytes;

        if (before[i].pid == 0 || __atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) == 0 ||
            slot->pid != before[i].pid)
            continue;
        bytes = footprint(slot->pid, count);
        if (bytes != UINT64_MAX)
            write_overhead(device, i, bytes, slot == mine ? pending : 0, slot == mine && quiet);
        else if (slot == mine && __atomic_load_n(&slot->use[device].contexts, __ATOMIC_RELAXED) > 0)
            __atomic_store_n(&hm_tenant.usage->device[device].estimated, 1, __ATOMIC_RELAXED);
    }
}

/* False: our own overhead could not be written exactly, since calls were in flight. */
static bool
refresh(int device)
{
    struct hm_slot *mine = hm_slot();
    uint64_t pending;
    bool quiet, locked;
    uint32_t high;
    int count;

    if (mine == NULL)
        return true;
    pending = hm_local_pending(device);
    hm_graph_refresh(device);
    pthread_mutex_lock(&mutex);
    quiet = hm_pool_refresh(device);
    high = note_before(device, mine->pid_ns);
    quiet = quiet && is_unchanged(device, mine);
    count = list_processes(device);
    quiet = hm_pool_refresh(device) && quiet; /* a pool that changed meanwhile shows */
    hm_graph_refresh(device);
    locked = hm_ledger_lock();
    quiet = quiet && locked && is_unchanged(device, mine);
    if (count >= 0 && locked)
        write_all(device, count, high, mine, pending, quiet);
    else if (count < 0)
        __atomic_store_n(&hm_tenant.usage->device[device].estimated, 1, __ATOMIC_RELAXED);
    if (locked)
        hm_ledger_unlock();
    pthread_mutex_unlock(&mutex);
    return quiet || count < 0;
}

void
hm_overhead_refresh(int device)
{
    refresh(device);
}

static uint64_t
predicted_context(int device)
{
    uint64_t measured = load(&hm_tenant.usage->device[device].context_bytes);

    if (measured == 0)
        measured = hm_tenant.limits->device[device].context_bytes;
    return (measured != 0 ? measured : HM_CONTEXT_BYTES) + service_bytes(services);
}

/* The first context of a process, before it allocates: then the overhead is the context. */
static void
measure_context(int device)
{
    struct hm_slot *mine = hm_slot();

    if (!refresh(device)) {
        __atomic_fetch_or(&unmeasured, 1u << device,
                          __ATOMIC_ACQ_REL); /* the helper tries again, soon */
        hm_futex_wake(&hm_tenant.usage->trim);
    } else if (mine != NULL &&
               __atomic_load_n(&mine->use[device].contexts, __ATOMIC_RELAXED) == 1 &&
               listed_bytes(&mine->use[device]) == 0 &&
               __atomic_load_n(&hm_tenant.usage->device[device].estimated, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(&hm_tenant.usage->device[device].context_bytes,
                         load(&measured_bytes[device]), __ATOMIC_RELAXED);
}

bool
hm_overhead_context_begin(int device)
{
    struct hm_slot *mine;
    uint64_t bytes;

    if (device < 0)
        return true;
    mine = hm_slot();
    bytes = predicted_context(device);
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
                "%s are left; raise the "
                "memory cap",
                (double)bytes / HM_MIB, (double)hm_ledger_room(device) / HM_MIB,
                (double)hm_cap_bytes(device) / HM_MIB, hm_tenant.limits->tenant);
    hm_quota_refused(device, bytes);
    return false;
}

void
hm_overhead_context_end(int device, bool made)
{
    struct hm_slot *mine = device >= 0 ? hm_slot() : NULL;

    if (mine == NULL)
        return;
    if (made)
        __atomic_fetch_add(&mine->use[device].contexts, 1, __ATOMIC_RELAXED);
    else
        hm_ledger_overhead(device, &mine->use[device], -(int64_t)predicted_context(device), true);
    __atomic_fetch_sub(&creating[device], 1, __ATOMIC_ACQ_REL);
    if (!made)
        return;
    __atomic_fetch_or(&unmeasured, 1u << device,
                      __ATOMIC_ACQ_REL); /* the helper takes it if NVML is not ready yet */
    if (__atomic_load_n(&nvml_warm, __ATOMIC_ACQUIRE) &&
        __atomic_fetch_and(&unmeasured, ~(1u << device), __ATOMIC_ACQ_REL) & 1u << device)
        measure_context(device);
}

/* The last context of this process on a device is gone. */
static void
forget_context(int device, struct hm_slot *mine)
{
    hm_local_forget(device);
    hm_ledger_overhead(device, &mine->use[device],
                       -(int64_t)load(&mine->use[device].overhead_bytes), true);
}

void
hm_overhead_context_gone(int device)
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
hm_overhead_load_fits(int device, uint64_t bytes)
{
    if (device < 0 || hm_cap_bytes(device) == UINT64_MAX ||
        hm_ledger_room(device) >= bytes + HM_NEAR_BYTES)
        return true;
    hm_overhead_refresh(device);
    return hm_ledger_charged(device) + bytes <= hm_cap_bytes(device);
}

bool
hm_overhead_services_fit(void)
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

/* The supervisor asked for it: modules came with launches that nobody saw. */
static void
measure_all(void)
{
    static uint32_t seen; /* only the helper is here */
    uint32_t asked = __atomic_load_n(&hm_tenant.limits->measure, __ATOMIC_ACQUIRE);
    const struct hm_slot *mine = asked != seen ? hm_slot() : NULL;

    seen = asked;
    for (uint32_t i = 0; mine != NULL && i < hm_tenant.limits->device_count; i++)
        if (__atomic_load_n(&mine->use[i].contexts, __ATOMIC_RELAXED) > 0)
            hm_overhead_refresh((int)i);
}

static void *
helper(void *argument)
{
    CUstreamCaptureMode relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    uint32_t *trim = &hm_tenant.usage->trim, seen = __atomic_load_n(trim, __ATOMIC_ACQUIRE), now;

    (void)argument;
    prctl(PR_SET_NAME, "hamirt");
    REAL(cuThreadExchangeStreamCaptureMode(&relaxed));
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < hm_tenant.limits->device_count; i++)
        list_processes((int)i); /* the first look takes 20 ms */
    pthread_mutex_unlock(&mutex);
    __atomic_store_n(&nvml_warm, true,
                     __ATOMIC_RELEASE); /* pairs with the acquire in hm_overhead_context_end */
    for (;;) {
        uint32_t pending = __atomic_exchange_n(&unmeasured, 0, __ATOMIC_ACQ_REL);

        for (int device = 0; device < HM_DEVICES; device++)
            if (pending & 1u << device)
                measure_context(device);
        measure_all();
        pending = __atomic_load_n(&unmeasured, __ATOMIC_ACQUIRE);
        hm_futex_wait(trim, seen, pending != 0 ? MEASURE_AGAIN_NS : HM_FOREVER);
        now = __atomic_load_n(trim,
                              __ATOMIC_ACQUIRE); /* pairs with the release of who asks for a trim */
        if (now == seen)
            continue;
        seen = now;
        hm_pool_trim(-1);
        hm_graph_trim(-1);
    }
    return NULL;
}

static bool helper_runs;

void
hm_helper_start(void)
{
    if (__atomic_exchange_n(&helper_runs, true, __ATOMIC_ACQ_REL))
        return;
    if (!hm_thread_start(helper, HELPER_STACK_BYTES))
        nvml_ready(); /* no thread to be had: measure here, later */
}

void
hm_helper_after_fork_child(void)
{
    helper_runs = false;
    unmeasured = 0;
    memset(creating, 0, sizeof(creating));
    pthread_mutex_init(&mutex, NULL);
}
