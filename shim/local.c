#include "local.h"

#include "ledger.h"
#include "overhead.h"
#include "physical.h"
#include "pool.h"

/* Bytes a thread, for each device; atomic. */
static uint64_t claimed[HM_DEVICES]; /* of the most demanding function handed out */
static uint64_t
    held[HM_DEVICES]; /* by the driver, as last seen: the stack limit shows it (driver 580) */

static void
raise_to(uint64_t *value, uint64_t at_least)
{
    uint64_t now = __atomic_load_n(value, __ATOMIC_RELAXED);

    while (now < at_least && !__atomic_compare_exchange_n(value, &now, at_least, true,
                                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

uint64_t
hm_local_bytes(int device, uint64_t thread_bytes)
{
    CUdevice handle = hm_device_handle(device);
    int processors = 0, threads = 0;

    REAL(cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, handle));
    REAL(
        cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, handle));
    return hm_whole_blocks(thread_bytes * (uint64_t)processors * (uint64_t)threads);
}

static uint64_t
look_held(int device)
{
    size_t limit;

    if (hm_device_current() == device &&
        REAL(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE)) == CUDA_SUCCESS)
        __atomic_store_n(&held[device], limit, __ATOMIC_RELAXED);
    return __atomic_load_n(&held[device], __ATOMIC_RELAXED);
}

static bool
charge(int device, uint64_t bytes)
{
    struct hm_slot *mine = hm_slot();

    if (mine == NULL)
        return false;
    if (hm_ledger_overhead(device, &mine->use[device], (int64_t)bytes, false))
        return true;
    hm_pool_trim(device);
    hm_graph_trim(device);
    hm_overhead_refresh(device);
    return hm_ledger_overhead(device, &mine->use[device], (int64_t)bytes, false);
}

bool
hm_local_claim(int device, uint64_t thread_bytes)
{
    uint64_t most = __atomic_load_n(&claimed[device], __ATOMIC_RELAXED), now, bytes;

    if (HM_LIKELY(thread_bytes <= most))
        return true;
    now = look_held(device);
    if (now > most)
        most = now;
    bytes = thread_bytes > most ? hm_local_bytes(device, thread_bytes - most) : 0;
    if (bytes > 0 && !charge(device, bytes)) {
        hm_quota_refused(device, bytes);
        return false;
    }
    raise_to(&claimed[device], thread_bytes);
    return true;
}

uint64_t
hm_local_pending(int device)
{
    uint64_t most = __atomic_load_n(&claimed[device], __ATOMIC_RELAXED), now;

    if (most == 0)
        return 0;
    now = look_held(device);
    return most > now ? hm_local_bytes(device, most - now) : 0;
}

void
hm_local_forget(int device)
{
    __atomic_store_n(&claimed[device], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&held[device], 0, __ATOMIC_RELAXED);
}
