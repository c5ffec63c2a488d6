/*
 * How big a device is and how much of it is free, through CUDA. The driver's first versions have 32
 * bits for a size: there a figure of ours that does not fit is not shown, and the driver's stays.
 */
#include "ledger.h"
#include "view.h"

#include <limits.h>

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

/* The driver fills what is not NULL (580). */
HM_HOOK CUresult
cuMemGetInfo_v2(size_t *free, size_t *total)
{
    CUresult result = REAL(cuMemGetInfo_v2(free, total));
    struct hm_view view;

    if (result != CUDA_SUCCESS || !view_of_current(total != NULL ? *total : UINT64_MAX,
                                                   free != NULL ? *free : UINT64_MAX, &view))
        return result;
    if (free != NULL)
        *free = view.free_bytes;
    if (total != NULL)
        *total = view.total_bytes;
    return result;
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
