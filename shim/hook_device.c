/*
 * How big a device is and how much of it is free, through CUDA. The driver's first versions have 32
 * bits for a size: there a figure of ours that does not fit is not shown, and the driver's stays.
 */
#include "ledger.h"
#include "view.h"

#include <limits.h>
#include <time.h>

/* The cap of a device, UINT64_MAX where there is none. */
static uint64_t
cap_of(CUdevice dev)
{
    int device = hm_active() ? hm_device_index(dev) : -1;

    return device >= 0 ? hm_cap_bytes(device) : UINT64_MAX;
}

HM_HOOK CUresult
cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)
{
    CUresult result = REAL(cuDeviceTotalMem_v2(bytes, dev));
    uint64_t cap = cap_of(dev);

    if (result == CUDA_SUCCESS && cap < *bytes)
        *bytes = cap;
    return result;
}

HM_HOOK CUresult
cuDeviceTotalMem(unsigned int *bytes, CUdevice dev)
{
    CUresult result = REAL(cuDeviceTotalMem(bytes, dev));
    uint64_t cap = cap_of(dev);

    if (result == CUDA_SUCCESS && cap <= UINT_MAX)
        *bytes = (unsigned int)cap;
    return result;
}

static bool
view_of_current(uint64_t card_total, uint64_t card_free, struct hm_view *view)
{
    int device = hm_device_current();

    return device >= 0 && hm_view_read(device, hm_slot(), card_total, card_free, view);
}

/*
 * The driver needs 5 us to say what the card has (H100, driver 580), and all we want to know is whether that is less than
 * the cap leaves. So a thread asks it again after a tenth of a millisecond only, as long as the answer was no.
 */
#define ASK_AGAIN_NS 100000

static __thread struct {
    int device;
    uint64_t until_ns; /* CLOCK_MONOTONIC */
} capped;              /* it was the cap that limited the last answer */

static uint64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool
view_without_driver(struct hm_view *view)
{
    int device = capped.until_ns > 0 ? hm_device_current() : -1;

    return device >= 0 && device == capped.device && now_ns() < capped.until_ns &&
           hm_view_read(device, hm_slot(), UINT64_MAX, UINT64_MAX, view);
}

static bool
view_with_driver(uint64_t card_total, uint64_t card_free, struct hm_view *view)
{
    capped.until_ns = 0;
    if (!view_of_current(card_total, card_free, view))
        return false;
    if (view->free_bytes < card_free && view->total_bytes < card_total) {
        capped.device = hm_device_current();
        capped.until_ns = now_ns() + ASK_AGAIN_NS;
    }
    return true;
}

/* The driver fills what is not NULL (580). */
HM_HOOK CUresult
cuMemGetInfo_v2(size_t *free, size_t *total)
{
    struct hm_view view;

    if (free == NULL || total == NULL || !view_without_driver(&view)) {
        CUresult result = REAL(cuMemGetInfo_v2(free, total));

        if (result != CUDA_SUCCESS || !view_with_driver(total != NULL ? *total : UINT64_MAX,
                                                        free != NULL ? *free : UINT64_MAX, &view))
            return result;
    }
    if (free != NULL)
        *free = view.free_bytes;
    if (total != NULL)
        *total = view.total_bytes;
    return CUDA_SUCCESS;
}

/* Only for contexts that the first version of cuCtxCreate made. */
HM_HOOK CUresult
cuMemGetInfo(unsigned int *free, unsigned int *total)
{
    CUresult result = REAL(cuMemGetInfo(free, total));
    struct hm_view view;

    if (result != CUDA_SUCCESS || !view_of_current(UINT64_MAX, UINT64_MAX, &view))
        return result;
    if (free != NULL && view.free_bytes < *free)
        *free = (unsigned int)view.free_bytes;
    if (total != NULL && view.total_bytes <= UINT_MAX)
        *total = (unsigned int)view.total_bytes;
    return result;
}
