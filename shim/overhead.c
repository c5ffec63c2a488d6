#include "overhead.h"

#include "context.h"
#include "ledger.h"
#include "local.h"
#include "log.h"
#include "pool.h"
#include "quota.h"

#include <pthread.h>
#include <time.h>

#define PROCESSES 1024 /* of one card, in one NVML answer */
#define FORK_WAIT_NS 200000000

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* one measurement at a time */
static __thread bool held __attribute__((tls_model("initial-exec"))); /* by who forks */
static nvmlProcessInfo_v2_t processes[PROCESSES];                     /* under the mutex */
static nvmlDevice_t handles[HM_DEVICES];                              /* under the mutex */
static bool nvml_works;                     /* after hm_overhead_nvml_ready */
static uint64_t measured_bytes[HM_DEVICES]; /* our overhead as last measured exactly; atomic */

static void
nvml_init(void)
{
    nvml_works = hm_resolve_nvml() && REAL_NVML(nvmlInit_v2()) == NVML_SUCCESS;
    if (!nvml_works)
        hm_log_once("NVML does not answer; context sizes are estimated");
}

bool
hm_overhead_nvml_ready(void)
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

    if (!hm_overhead_nvml_ready())
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

static uint64_t
load(const uint64_t *value)
{
    return __atomic_load_n(value, __ATOMIC_RELAXED);
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
             least = hm_context_least_bytes(device, use);

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

    return hm_quota_quiet(device) && !hm_context_creating(device) &&
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

bool
hm_overhead_measure_context(int device)
{
    const struct hm_slot *mine = hm_slot();

    if (!refresh(device))
        return false;
    if (mine != NULL && __atomic_load_n(&mine->use[device].contexts, __ATOMIC_RELAXED) == 1 &&
        listed_bytes(&mine->use[device]) == 0 &&
        __atomic_load_n(&hm_tenant.usage->device[device].estimated, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(&hm_tenant.usage->device[device].context_bytes,
                         load(&measured_bytes[device]), __ATOMIC_RELAXED);
    return true;
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

void
hm_overhead_warm_up(void)
{
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < hm_tenant.limits->device_count; i++)
        list_processes((int)i);
    pthread_mutex_unlock(&mutex);
}

void
hm_overhead_before_fork(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += FORK_WAIT_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    held = pthread_mutex_timedlock(&mutex, &until) == 0;
}

void
hm_overhead_after_fork_parent(void)
{
    if (held)
        pthread_mutex_unlock(&mutex);
}

void
hm_overhead_after_fork_child(void)
{
    pthread_mutex_init(&mutex, NULL);
}
