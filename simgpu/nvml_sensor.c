#include "nvml_call.h"

#include "sim_clock.h"

/* What a card would show: a little warmer and hungrier when it works. */
static unsigned int
utilization(struct hm_card *card)
{
    unsigned int percent;

    hm_state_lock();
    hm_engine_advance(&card->engine, hm_clock_ns());
    percent = card->engine.utilization_percent;
    hm_state_unlock();
    return percent;
}

static nvmlReturn_t
number_out(unsigned int value, unsigned int *out)
{
    if (out == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = value;
    return NVML_SUCCESS;
}

#define IDLE_CELSIUS 31
#define IDLE_MILLIWATTS 70000
#define LIMIT_MILLIWATTS 700000

HM_EXPORT nvmlReturn_t
nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor,
                         unsigned int *celsius)
{
    HM_ENTER_DEVICE(device);
    if (sensor != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    return number_out(IDLE_CELSIUS + utilization(card) / 4, celsius);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature)
{
    HM_ENTER_DEVICE(device);
    if (temperature == NULL || temperature->sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    temperature->temperature = IDLE_CELSIUS + (int)utilization(card) / 4;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t threshold,
                                  unsigned int *celsius)
{
    HM_ENTER_DEVICE(device);
    if (threshold > NVML_TEMPERATURE_THRESHOLD_GPU_MAX)
        return NVML_ERROR_NOT_SUPPORTED;
    return number_out(threshold == NVML_TEMPERATURE_THRESHOLD_SHUTDOWN ? 92 : 87, celsius);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts)
{
    HM_ENTER_DEVICE(device);
    return number_out(IDLE_MILLIWATTS + utilization(card) * 5000, milliwatts);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *milliwatts)
{
    HM_ENTER_DEVICE(device);
    return number_out(LIMIT_MILLIWATTS, milliwatts);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *milliwatts)
{
    HM_ENTER_DEVICE(device);
    return number_out(LIMIT_MILLIWATTS, milliwatts);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *milliwatts)
{
    HM_ENTER_DEVICE(device);
    return number_out(LIMIT_MILLIWATTS, milliwatts);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least,
                                             unsigned int *most)
{
    HM_ENTER_DEVICE(device);
    if (least == NULL || most == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *least = 200000;
    *most = LIMIT_MILLIWATTS;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    HM_ENTER_DEVICE(device);
    return number_out(NVML_FEATURE_ENABLED, mode);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *state)
{
    HM_ENTER_DEVICE(device);
    if (state == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *state = NVML_PSTATE_0;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPowerState(nvmlDevice_t device, nvmlPstates_t *state)
{
    HM_ENTER_DEVICE(device);
    if (state == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *state = NVML_PSTATE_0;
    return NVML_SUCCESS;
}

#define MEMORY_MHZ 2619
#define GRAPHICS_MHZ 1980
#define VIDEO_MHZ 1545

static unsigned int
clock_mhz(nvmlClockType_t type)
{
    return type == NVML_CLOCK_MEM     ? MEMORY_MHZ
           : type == NVML_CLOCK_VIDEO ? VIDEO_MHZ
                                      : GRAPHICS_MHZ;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz)
{
    HM_ENTER_DEVICE(device);
    if (type >= NVML_CLOCK_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    return number_out(clock_mhz(type), mhz);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz)
{
    HM_ENTER_DEVICE(device);
    if (type >= NVML_CLOCK_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    return number_out(clock_mhz(type), mhz);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *mhz)
{
    HM_ENTER_DEVICE(device);
    if (type >= NVML_CLOCK_COUNT || id >= NVML_CLOCK_ID_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    return number_out(clock_mhz(type), mhz);
}

static nvmlReturn_t
codec_out(unsigned int *percent, unsigned int *period_us)
{
    if (percent == NULL || period_us == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *percent = 0;
    *period_us = 167000;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us)
{
    HM_ENTER_DEVICE(device);
    return codec_out(percent, period_us);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us)
{
    HM_ENTER_DEVICE(device);
    return codec_out(percent, period_us);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation)
{
    HM_ENTER_DEVICE(device);
    return number_out(5, generation);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation)
{
    HM_ENTER_DEVICE(device);
    return number_out(5, generation);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *width)
{
    HM_ENTER_DEVICE(device);
    return number_out(16, width);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *width)
{
    HM_ENTER_DEVICE(device);
    return number_out(16, width);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *value)
{
    HM_ENTER_DEVICE(device);
    if (counter >= NVML_PCIE_UTIL_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    return number_out(0, value);
}
