#include "nvml_call.h"

#include "sim_clock.h"

static uint64_t
used_blocks(const struct hm_card *card)
{
    uint64_t blocks;

    hm_state_lock();
    hm_process_reap_every(HM_NVML_REAP_NS);
    blocks = card->blocks_used;
    hm_state_unlock();
    return blocks;
}

/* The first version counts what the driver keeps for itself as used. */
HM_EXPORT nvmlReturn_t
nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    HM_ENTER_DEVICE(device);
    if (memory == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    memory->total = card->total_bytes;
    memory->used = card->reserved_bytes + used_blocks(card) * HM_BLOCK_BYTES;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    HM_ENTER_DEVICE(device);
    if (memory == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = card->total_bytes;
    memory->reserved = card->reserved_bytes;
    memory->used = used_blocks(card) * HM_BLOCK_BYTES;
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

#define BAR1_BYTES (128ull << 30)
#define BAR1_USED (4 * HM_MIB)

HM_EXPORT nvmlReturn_t
nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
    HM_ENTER_DEVICE(device);
    if (memory == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    memory->bar1Total = BAR1_BYTES;
    memory->bar1Used = BAR1_USED;
    memory->bar1Free = BAR1_BYTES - BAR1_USED;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    HM_ENTER_DEVICE(device);
    if (utilization == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    hm_state_lock();
    hm_process_reap_every(HM_NVML_REAP_NS);
    hm_engine_advance(&card->engine, hm_clock_ns());
    utilization->gpu = card->engine.utilization_percent;
    hm_state_unlock();
    utilization->memory = utilization->gpu / 2;
    return NVML_SUCCESS;
}
