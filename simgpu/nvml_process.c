#include "nvml_call.h"

#include <string.h>
#include <time.h>

#include "sim_clock.h"

#define NO_INSTANCE 0xffffffffu

struct process {
    unsigned int pid;
    unsigned long long used_bytes;
    unsigned int utilization_percent;
};

/* What the slot's channels were served in the last complete window. */
static unsigned int
utilization_of(const struct hm_engine *engine, int slot)
{
    int64_t served = 0;

    for (int i = 0; i < HM_CHANNELS; i++) {
        if (engine->channels[i].used != 0 && engine->channels[i].slot == slot)
            served += engine->channels[i].last_window_ns;
    }
    return (unsigned int)(served * 100 / HM_ENGINE_WINDOW_NS);
}

/* The processes with a context on the card that this PID namespace can name. */
static unsigned int
list(struct hm_card *card, struct process processes[HM_SLOTS])
{
    const struct hm_state *state = hm_state();
    uint32_t index = hm_device_index(card);
    unsigned int count = 0;
    int32_t pid;

    hm_state_lock();
    hm_process_reap_every(HM_NVML_REAP_NS);
    hm_engine_advance(&card->engine, hm_clock_ns());
    for (int slot = 0; slot < HM_SLOTS; slot++) {
        const struct hm_slot *process = &state->slots[slot];

        if (process->used == 0 || process->contexts[index] == 0 ||
            (pid = hm_process_pid(slot)) == 0)
            continue;
        processes[count++] = (struct process){
            .pid = (unsigned int)pid,
            .used_bytes = hm_card_slot_blocks(index, slot) * HM_BLOCK_BYTES,
            .utilization_percent = utilization_of(&card->engine, slot),
        };
    }
    hm_state_unlock();
    return count;
}

/* The count goes out in any case; without room the caller asks again. */
static nvmlReturn_t
room_for(unsigned int found, unsigned int *count, const void *out)
{
    bool fits = found <= *count && (found == 0 || out != NULL);

    *count = found;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                        nvmlProcessInfo_t *infos)
{
    struct process processes[HM_SLOTS];
    nvmlReturn_t result;

    HM_ENTER_DEVICE(device);
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = room_for(list(card, processes), count, infos);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < *count; i++) {
        infos[i] = (nvmlProcessInfo_t){
            .pid = processes[i].pid,
            .usedGpuMemory = processes[i].used_bytes,
            .gpuInstanceId = NO_INSTANCE,
            .computeInstanceId = NO_INSTANCE,
        };
    }
    return result;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                        nvmlProcessInfo_v2_t *infos)
{
    struct process processes[HM_SLOTS];
    nvmlReturn_t result;

    HM_ENTER_DEVICE(device);
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = room_for(list(card, processes), count, infos);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < *count; i++) {
        infos[i] = (nvmlProcessInfo_v2_t){
            .pid = processes[i].pid,
            .usedGpuMemory = processes[i].used_bytes,
            .gpuInstanceId = NO_INSTANCE,
            .computeInstanceId = NO_INSTANCE,
        };
    }
    return result;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                     nvmlProcessInfo_v1_t *infos)
{
    struct process processes[HM_SLOTS];
    nvmlReturn_t result;

    HM_ENTER_DEVICE(device);
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = room_for(list(card, processes), count, infos);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < *count; i++) {
        infos[i].pid = processes[i].pid;
        infos[i].usedGpuMemory = processes[i].used_bytes;
    }
    return result;
}

/* Nobody draws, and there is no MPS. */
static nvmlReturn_t
none(unsigned int *count)
{
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                         nvmlProcessInfo_t *infos)
{
    HM_ENTER_DEVICE(device);
    (void)infos;
    return none(count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                         nvmlProcessInfo_v2_t *infos)
{
    HM_ENTER_DEVICE(device);
    (void)infos;
    return none(count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                      nvmlProcessInfo_v1_t *infos)
{
    HM_ENTER_DEVICE(device);
    (void)infos;
    return none(count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                           nvmlProcessInfo_t *infos)
{
    HM_ENTER_DEVICE(device);
    (void)infos;
    return none(count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                           nvmlProcessInfo_v2_t *infos)
{
    HM_ENTER_DEVICE(device);
    (void)infos;
    return none(count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                        nvmlProcessInfo_v1_t *infos)
{
    HM_ENTER_DEVICE(device);
    (void)infos;
    return none(count);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_t *details)
{
    struct process processes[HM_SLOTS];
    unsigned int found;
    nvmlReturn_t result;

    HM_ENTER_DEVICE(device);
    if (details == NULL || details->mode > 2)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (details->version != nvmlProcessDetailList_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    found = details->mode == 0 ? list(card, processes) : 0;
    result = room_for(found, &details->numProcArrayEntries, details->procArray);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < found; i++) {
        details->procArray[i] = (nvmlProcessDetail_v1_t){
            .pid = processes[i].pid,
            .usedGpuMemory = processes[i].used_bytes,
            .gpuInstanceId = NO_INSTANCE,
            .computeInstanceId = NO_INSTANCE,
        };
    }
    return result;
}

static unsigned long long
wall_clock_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
}

/* One sample for each process that ran in the last window. */
HM_EXPORT nvmlReturn_t
nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                unsigned int *count, unsigned long long since_us)
{
    struct process processes[HM_SLOTS];
    unsigned int found;
    unsigned int busy = 0;

    HM_ENTER_DEVICE(device);
    (void)since_us;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    found = list(card, processes);
    for (unsigned int i = 0; i < found; i++) {
        if (processes[i].utilization_percent == 0)
            continue;
        if (samples != NULL && busy < *count)
            samples[busy] = (nvmlProcessUtilizationSample_t){
                .pid = processes[i].pid,
                .timeStamp = wall_clock_us(),
                .smUtil = processes[i].utilization_percent,
            };
        busy++;
    }
    if (busy == 0)
        return NVML_ERROR_NOT_FOUND;
    return room_for(busy, count, samples);
}
