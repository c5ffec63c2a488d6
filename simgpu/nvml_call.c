#include "nvml_call.h"

#include <stdatomic.h>
#include <string.h>

#include "sim_fault.h"

static _Atomic int initialized;
static __thread const char *twin;

void
hm_twin_begin(const char *name)
{
    twin = name;
}

nvmlReturn_t
hm_call_enter(const char *name, enum hm_need need)
{
    const char *called = twin != NULL ? twin : name;
    int code;

    twin = NULL;
    if (hm_fault_hit(called, &code))
        return (nvmlReturn_t)code;
    if (need == HM_INITIALIZED && atomic_load(&initialized) == 0)
        return NVML_ERROR_UNINITIALIZED;
    return NVML_SUCCESS;
}

struct hm_card *
hm_device_card(nvmlDevice_t device)
{
    uintptr_t number = (uintptr_t)device;

    return number >= 1 && number <= hm_state()->cards ? &hm_state()->card[number - 1] : NULL;
}

nvmlDevice_t
hm_device_handle(uint32_t index)
{
    return (nvmlDevice_t)(uintptr_t)(index + 1);
}

uint32_t
hm_device_index(const struct hm_card *card)
{
    return (uint32_t)(card - hm_state()->card);
}

nvmlReturn_t
hm_text_out(const char *text, char *out, unsigned int size)
{
    if (out == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (size <= strlen(text))
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}

static nvmlReturn_t
initialize(void)
{
    if (hm_state() == NULL)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    atomic_fetch_add(&initialized, 1);
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlInit_v2(void)
{
    HM_ENTER(HM_ANYTIME);
    return initialize();
}

HM_EXPORT nvmlReturn_t
nvmlInitWithFlags(unsigned int flags)
{
    HM_ENTER(HM_ANYTIME);
    (void)flags;
    return initialize();
}

HM_EXPORT nvmlReturn_t
nvmlShutdown(void)
{
    HM_ENTER(HM_INITIALIZED);
    atomic_fetch_sub(&initialized, 1);
    return NVML_SUCCESS;
}
