/*
 * NVML's enumeration, its memory figures and its utilization. A device that the tenant was not given does not exist;
 * the others are counted in the order of the limits page. Handles are NVML's own, and what is wrong
 * with a call NVML says itself: it is asked first, always.
 */
#include "ledger.h"
#include "view.h"

#include <limits.h>
#include <string.h>

#define NODE_DEVICES 64 /* in one list of NVML */

HM_HOOK nvmlReturn_t
nvmlDeviceGetCount_v2(unsigned int *deviceCount)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetCount_v2(deviceCount));

    if (result == NVML_SUCCESS && hm_active())
        *deviceCount = hm_tenant.limits->device_count;
    return result;
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetCount(unsigned int *deviceCount)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetCount(deviceCount));

    if (result == NVML_SUCCESS && hm_active())
        *deviceCount = hm_tenant.limits->device_count;
    return result;
}

/* Out of range for the tenant is out of range for NVML: it says so, or is not initialized. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    if (!hm_active())
        return REAL_NVML(nvmlDeviceGetHandleByIndex_v2(index, device));
    if (index >= hm_tenant.limits->device_count)
        return REAL_NVML(nvmlDeviceGetHandleByIndex_v2(UINT_MAX, device));
    return REAL_NVML(nvmlDeviceGetHandleByUUID(hm_tenant.limits->device[index].uuid, device));
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    if (!hm_active())
        return REAL_NVML(nvmlDeviceGetHandleByIndex(index, device));
    if (index >= hm_tenant.limits->device_count)
        return REAL_NVML(nvmlDeviceGetHandleByIndex(UINT_MAX, device));
    return REAL_NVML(nvmlDeviceGetHandleByUUID(hm_tenant.limits->device[index].uuid, device));
}

/* What NVML found by a name that is good on the whole node. */
static nvmlReturn_t
given(nvmlReturn_t result, const nvmlDevice_t *found, nvmlDevice_t *device)
{
    if (result != NVML_SUCCESS)
        return result;
    if (hm_active() && hm_view_device(*found) < 0)
        return NVML_ERROR_NOT_FOUND;
    *device = *found;
    return NVML_SUCCESS;
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    nvmlDevice_t found;

    return given(REAL_NVML(nvmlDeviceGetHandleByUUID(uuid, device != NULL ? &found : NULL)), &found,
                 device);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
    nvmlDevice_t found;

    return given(REAL_NVML(nvmlDeviceGetHandleByUUIDV(uuid, device != NULL ? &found : NULL)),
                 &found, device);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    nvmlDevice_t found;

    return given(REAL_NVML(nvmlDeviceGetHandleBySerial(serial, device != NULL ? &found : NULL)),
                 &found, device);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device)
{
    nvmlDevice_t found;

    return given(
        REAL_NVML(nvmlDeviceGetHandleByPciBusId_v2(pciBusId, device != NULL ? &found : NULL)),
        &found, device);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device)
{
    nvmlDevice_t found;

    return given(REAL_NVML(nvmlDeviceGetHandleByPciBusId(pciBusId, device != NULL ? &found : NULL)),
                 &found, device);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetIndex(device, index));
    int ours = hm_view_device(device);

    if (result == NVML_SUCCESS && ours >= 0)
        *index = (unsigned int)ours;
    return result;
}

/* How many of the devices are the tenant's; they move to the front. */
static unsigned int
keep_given(nvmlDevice_t *devices, unsigned int count)
{
    unsigned int kept = 0;

    for (unsigned int i = 0; i < count && i < NODE_DEVICES; i++)
        if (hm_view_device(devices[i]) >= 0)
            devices[kept++] = devices[i];
    return kept;
}

/* A list of devices for a caller with room for *count of them; 0 asks how many there are. */
static nvmlReturn_t
give_devices(const nvmlDevice_t *devices, unsigned int kept, unsigned int *count,
             nvmlDevice_t *array)
{
    if (*count > 0)
        memcpy(array, devices, (kept < *count ? kept : *count) * sizeof(devices[0]));
    if (*count == 0 || kept < *count)
        *count = kept;
    return NVML_SUCCESS;
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
                                 unsigned int *count, nvmlDevice_t *deviceArray)
{
    nvmlDevice_t devices[NODE_DEVICES] = {NULL};
    unsigned int found = 0;
    nvmlReturn_t result;

    if (!hm_active() || count == NULL || (*count > 0 && deviceArray == NULL))
        return REAL_NVML(nvmlDeviceGetTopologyNearestGpus(device, level, count, deviceArray));
    result = REAL_NVML(nvmlDeviceGetTopologyNearestGpus(device, level, &found, NULL));
    if (result == NVML_SUCCESS && found > 0 && found <= NODE_DEVICES)
        result = REAL_NVML(nvmlDeviceGetTopologyNearestGpus(device, level, &found, devices));
    return result != NVML_SUCCESS
               ? result
               : give_devices(devices, keep_given(devices, found), count, deviceArray);
}

HM_HOOK nvmlReturn_t
nvmlSystemGetTopologyGpuSet(unsigned int cpuNumber, unsigned int *count, nvmlDevice_t *deviceArray)
{
    nvmlDevice_t devices[NODE_DEVICES] = {NULL};
    unsigned int found = 0;
    nvmlReturn_t result;

    if (!hm_active() || count == NULL || (*count > 0 && deviceArray == NULL))
        return REAL_NVML(nvmlSystemGetTopologyGpuSet(cpuNumber, count, deviceArray));
    result = REAL_NVML(nvmlSystemGetTopologyGpuSet(cpuNumber, &found, NULL));
    if (result == NVML_SUCCESS && found > 0 && found <= NODE_DEVICES)
        result = REAL_NVML(nvmlSystemGetTopologyGpuSet(cpuNumber, &found, devices));
    return result != NVML_SUCCESS
               ? result
               : give_devices(devices, keep_given(devices, found), count, deviceArray);
}

HM_HOOK nvmlReturn_t
nvmlUnitGetDevices(nvmlUnit_t unit, unsigned int *deviceCount, nvmlDevice_t *devices)
{
    nvmlDevice_t all[NODE_DEVICES] = {NULL};
    unsigned int found = NODE_DEVICES, room;
    nvmlReturn_t result;

    if (!hm_active() || deviceCount == NULL || devices == NULL)
        return REAL_NVML(nvmlUnitGetDevices(unit, deviceCount, devices));
    result = REAL_NVML(nvmlUnitGetDevices(unit, &found, all));
    if (result != NVML_SUCCESS)
        return result;
    room = *deviceCount;
    *deviceCount = keep_given(all, found);
    if (room < *deviceCount)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(devices, all, *deviceCount * sizeof(all[0]));
    return NVML_SUCCESS;
}

/* In the first version "used" has what is reserved in it. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetMemoryInfo(device, memory));
    struct hm_view view;

    if (result != NVML_SUCCESS ||
        !hm_view_read(hm_view_device(device), NULL, memory->total, memory->free, &view))
        return result;
    memory->total = view.total_bytes;
    memory->free = view.free_bytes;
    memory->used = view.total_bytes - view.free_bytes;
    return result;
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetMemoryInfo_v2(device, memory));
    struct hm_view view;

    if (result != NVML_SUCCESS ||
        !hm_view_read(hm_view_device(device), NULL, memory->total, memory->free, &view))
        return result;
    memory->total = view.total_bytes;
    memory->reserved = view.reserved_bytes;
    memory->free = view.free_bytes;
    memory->used = view.used_bytes;
    return result;
}

/* The tenant's own share of GPU time. Whose the traffic of the card's memory is, nobody knows. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetUtilizationRates(device, utilization));
    int ours = hm_view_device(device);

    if (result == NVML_SUCCESS && ours >= 0)
        utilization->gpu = hm_view_busy(ours, utilization->gpu);
    return result;
}

/* All zero unless confidential computing is on. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetConfComputeProtectedMemoryUsage(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetConfComputeProtectedMemoryUsage(device, memory));
    struct hm_view view;

    if (result != NVML_SUCCESS ||
        !hm_view_read(hm_view_device(device), NULL, memory->total, memory->free, &view))
        return result;
    memory->total = view.total_bytes < memory->total ? view.total_bytes : memory->total;
    memory->free = view.free_bytes < memory->free ? view.free_bytes : memory->free;
    memory->used = memory->total - memory->free;
    return result;
}

/* What is not protected is the whole card's size. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device, nvmlConfComputeMemSizeInfo_t *memInfo)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetConfComputeMemSizeInfo(device, memInfo));
    int ours = hm_view_device(device);
    uint64_t cap_kib = result == NVML_SUCCESS && ours >= 0 ? hm_cap_bytes(ours) / 1024 : UINT64_MAX;

    if (cap_kib < memInfo->protectedMemSizeKib)
        memInfo->protectedMemSizeKib = cap_kib;
    if (cap_kib < memInfo->unprotectedMemSizeKib)
        memInfo->unprotectedMemSizeKib = cap_kib;
    return result;
}
