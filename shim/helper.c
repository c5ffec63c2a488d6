#include "helper.h"

#include "futex.h"
#include "overhead.h"
#include "pool.h"
#include "thread.h"

#include <sys/prctl.h>

#define STACK_BYTES 262144
#define MEASURE_AGAIN_NS 20000000

static bool runs;           /* atomic */
static bool nvml_warm;      /* NVML was asked once and answers at once; atomic */
static uint32_t unmeasured; /* a bit for each device with a new context; atomic */

static void
measure(int device)
{
    if (hm_overhead_measure_context(device))
        return;
    __atomic_fetch_or(&unmeasured, 1u << device,
                      __ATOMIC_ACQ_REL); /* the helper tries again, soon */
    hm_futex_wake(&hm_tenant.usage->trim);
}

void
hm_helper_measure(int device)
{
    __atomic_fetch_or(&unmeasured, 1u << device,
                      __ATOMIC_ACQ_REL); /* the helper takes it if NVML is not ready yet */
    if (__atomic_load_n(&nvml_warm, __ATOMIC_ACQUIRE) &&
        __atomic_fetch_and(&unmeasured, ~(1u << device), __ATOMIC_ACQ_REL) & 1u << device)
        measure(device);
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
    hm_overhead_warm_up();
    __atomic_store_n(&nvml_warm, true,
                     __ATOMIC_RELEASE); /* pairs with the acquire in hm_helper_measure */
    for (;;) {
        uint32_t pending = __atomic_exchange_n(&unmeasured, 0, __ATOMIC_ACQ_REL);

        for (int device = 0; device < HM_DEVICES; device++)
            if (pending & 1u << device)
                measure(device);
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

void
hm_helper_start(void)
{
    if (__atomic_exchange_n(&runs, true, __ATOMIC_ACQ_REL))
        return;
    if (!hm_thread_start(helper, STACK_BYTES))
        hm_overhead_nvml_ready(); /* no thread to be had: measure here, later */
}

void
hm_helper_after_fork_child(void)
{
    runs = false;
    unmeasured = 0;
}
