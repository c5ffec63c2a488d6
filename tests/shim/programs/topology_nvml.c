/*
 * The calls of NVML that list devices, which the simulated driver has not: four cards beside each
 * other, on one CPU and in one unit. Stands in for the whole library.
 */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include <stdio.h>
#include <string.h>

#define CARDS 4

static char cards[CARDS];

#define EXPORT __attribute__((visibility("default")))

static nvmlDevice_t
card(unsigned int index)
{
    return (nvmlDevice_t)&cards[index];
}

EXPORT nvmlReturn_t
nvmlInit_v2(void)
{
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t
nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t
nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    snprintf(uuid, length, "GPU-5a1e0000-0000-4000-8000-%012x",
             (unsigned int)((char *)device - cards));
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t
nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    char own[NVML_DEVICE_UUID_V2_BUFFER_SIZE];

    for (unsigned int i = 0; i < CARDS; i++) {
        nvmlDeviceGetUUID(card(i), own, sizeof(own));
        *device = card(i);
        if (strcmp(own, uuid) == 0)
            return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

/* A count of 0 asks; otherwise as many are written as there are and fit. */
static nvmlReturn_t
list(unsigned int leave_out, unsigned int *count, nvmlDevice_t *devices)
{
    unsigned int found = 0;

    for (unsigned int i = 0; i < CARDS; i++)
        if (i != leave_out && (*count == 0 || found < *count)) {
            if (*count > 0)
                devices[found] = card(i);
            found++;
        }
    *count = found;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t
nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
                                 unsigned int *count, nvmlDevice_t *deviceArray)
{
    if (level != NVML_TOPOLOGY_SYSTEM || (*count > 0 && deviceArray == NULL))
        return NVML_ERROR_INVALID_ARGUMENT;
    return list((unsigned int)((char *)device - cards), count, deviceArray);
}

EXPORT nvmlReturn_t
nvmlSystemGetTopologyGpuSet(unsigned int cpuNumber, unsigned int *count, nvmlDevice_t *deviceArray)
{
    return cpuNumber == 0 ? list(CARDS, count, deviceArray) : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t
nvmlUnitGetDevices(nvmlUnit_t unit, unsigned int *deviceCount, nvmlDevice_t *devices)
{
    (void)unit;
    if (*deviceCount < CARDS)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    return list(CARDS, deviceCount, devices);
}
