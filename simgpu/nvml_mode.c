#include "nvml_call.h"

static nvmlReturn_t
number_out(unsigned int value, unsigned int *out)
{
    if (out == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = value;
    return NVML_SUCCESS;
}

static nvmlReturn_t
modes_out(unsigned int *current, unsigned int *pending, unsigned int value)
{
    if (current == NULL || pending == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *current = value;
    *pending = value;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_FEATURE_ENABLED, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_FEATURE_DISABLED, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_FEATURE_DISABLED, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetAccountingMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_FEATURE_DISABLED, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_COMPUTEMODE_DEFAULT, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    HM_ENTER_DEVICE(device);
    return modes_out(current, pending, NVML_DEVICE_MIG_DISABLE);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending)
{
    HM_ENTER_DEVICE(device);
    return modes_out(current, pending, NVML_FEATURE_ENABLED);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    HM_ENTER_DEVICE(device);
    return number_out(0, count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    HM_ENTER_DEVICE(device);
    return number_out(0, is_mig);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
    HM_ENTER_DEVICE(device);
    (void)index;
    return mig == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_FOUND;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, nvmlGpuVirtualizationMode_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_GPU_VIRTUALIZATION_MODE_NONE, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                            nvmlEccCounterType_t counter, unsigned long long *count)
{
    HM_ENTER_DEVICE(device);
    if (count == NULL || type >= NVML_MEMORY_ERROR_TYPE_COUNT ||
        counter >= NVML_ECC_COUNTER_TYPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    HM_ENTER_DEVICE(device);
    if (reasons == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *reasons = 0;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    HM_ENTER_DEVICE(device);
    if (reasons == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *reasons = 0;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned int *bits)
{
    HM_ENTER_DEVICE(device);
    return number_out(5120, bits);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned int *count)
{
    HM_ENTER_DEVICE(device);
    return number_out(0, count);
}
