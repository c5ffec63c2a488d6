#include "cuda_lookup.h"

#include <string.h>

#include "sim_fault.h"

#define DRIVER_VERSION 13000

/* The newest form that `version` knows; `newer` tells that there is one for later versions. */
static const struct hm_lookup *
find(const char *name, int version, bool per_thread, bool *newer)
{
    const struct hm_lookup *best = NULL;

    for (size_t i = 0; i < hm_lookup_count; i++) {
        const struct hm_lookup *row = &hm_lookups[i];

        if (row->per_thread != per_thread || strcmp(row->name, name) != 0)
            continue;
        if (row->since > version)
            *newer = true;
        else if (best == NULL || row->since > best->since)
            best = row;
    }
    return best;
}

static CUresult
look_up(const char *name, void **function, int version, cuuint64_t flags,
        CUdriverProcAddressQueryResult *status)
{
    const struct hm_lookup *row = NULL;
    bool newer = false;

    if (name == NULL || function == NULL || version > DRIVER_VERSION)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_fault_absent(name)) {
        if ((flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0)
            row = find(name, version, true, &newer);
        if (row == NULL)
            row = find(name, version, false, &newer);
    }
    *function = row != NULL ? row->function : NULL;
    *status = row != NULL ? CU_GET_PROC_ADDRESS_SUCCESS
              : newer     ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                          : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return row != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

HM_EXPORT CUresult
cuGetProcAddress_v2(const char *name, void **function, int version, cuuint64_t flags,
                    CUdriverProcAddressQueryResult *status)
{
    HM_ENTER(HM_ANYTIME);
    CUdriverProcAddressQueryResult ignored;

    return look_up(name, function, version, flags, status != NULL ? status : &ignored);
}

HM_EXPORT CUresult
cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags)
{
    HM_ENTER(HM_ANYTIME);
    CUdriverProcAddressQueryResult ignored;

    return look_up(name, function, version, flags, &ignored);
}

/* libcudart's private tables are not simulated. */
HM_EXPORT CUresult
cuGetExportTable(const void **table, const CUuuid *id)
{
    HM_ENTER(HM_ANYTIME);
    (void)id;
    if (table != NULL)
        *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
