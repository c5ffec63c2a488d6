#include "nvml_call.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define SERIAL_FIRST 1650000000000ull

HM_EXPORT nvmlReturn_t
nvmlDeviceGetCount_v2(unsigned int *count)
{
    HM_ENTER(HM_INITIALIZED);
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = hm_state()->cards;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    HM_ENTER(HM_INITIALIZED);
    if (device == NULL || index >= hm_state()->cards)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = hm_device_handle(index);
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    HM_ENTER(HM_INITIALIZED);
    if (uuid == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t index = 0; index < hm_state()->cards; index++) {
        char text[HM_UUID_TEXT];

        hm_card_uuid_text(index, text);
        if (strcasecmp(text, uuid) == 0) {
            *device = hm_device_handle(index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
    unsigned char binary[HM_UUID_BYTES];

    HM_ENTER(HM_INITIALIZED);
    if (uuid == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t index = 0; index < hm_state()->cards; index++) {
        char text[HM_UUID_TEXT];

        hm_card_uuid(index, binary);
        hm_card_uuid_text(index, text);
        if (uuid->type == NVML_UUID_TYPE_BINARY
                ? memcmp(binary, uuid->value.bytes, sizeof(binary)) == 0
                : strcasecmp(text, uuid->value.str) == 0) {
            *device = hm_device_handle(index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetHandleByPciBusId_v2(const char *text, nvmlDevice_t *device)
{
    unsigned int domain = 0;
    unsigned int bus = 0;
    unsigned int slot = 0;

    HM_ENTER(HM_INITIALIZED);
    if (text == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (sscanf(text, "%x:%x:%x", &domain, &bus, &slot) != 3) {
        domain = 0;
        if (sscanf(text, "%x:%x", &bus, &slot) != 2)
            return NVML_ERROR_INVALID_ARGUMENT;
    }
    for (uint32_t index = 0; index < hm_state()->cards; index++) {
        if (domain == 0 && slot == 0 && hm_card_bus(index) == bus) {
            *device = hm_device_handle(index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

static void
serial_text(uint32_t index, char text[NVML_DEVICE_SERIAL_BUFFER_SIZE])
{
    snprintf(text, NVML_DEVICE_SERIAL_BUFFER_SIZE, "%llu", SERIAL_FIRST + index);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    HM_ENTER(HM_INITIALIZED);
    if (serial == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t index = 0; index < hm_state()->cards; index++) {
        char text[NVML_DEVICE_SERIAL_BUFFER_SIZE];

        serial_text(index, text);
        if (strcmp(text, serial) == 0) {
            *device = hm_device_handle(index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    char text[NVML_DEVICE_SERIAL_BUFFER_SIZE];

    HM_ENTER_DEVICE(device);
    serial_text(hm_device_index(card), text);
    return hm_text_out(text, serial, length);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    HM_ENTER_DEVICE(device);
    return hm_text_out(HM_CARD_NAME, name, length);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    char text[HM_UUID_TEXT];

    HM_ENTER_DEVICE(device);
    hm_card_uuid_text(hm_device_index(card), text);
    return hm_text_out(text, uuid, length);
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    HM_ENTER_DEVICE(device);
    if (index == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *index = hm_device_index(card);
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    HM_ENTER_DEVICE(device);
    if (minor == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *minor = hm_device_index(card);
    return NVML_SUCCESS;
}

#define DEVICE_ID 0x233010de
#define SUBSYSTEM_ID 0x16c110de

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    HM_ENTER_DEVICE(device);
    if (pci == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *pci = (nvmlPciInfo_t){
        .bus = hm_card_bus(hm_device_index(card)),
        .pciDeviceId = DEVICE_ID,
        .pciSubSystemId = SUBSYSTEM_ID,
    };
    snprintf(pci->busIdLegacy, sizeof(pci->busIdLegacy), "0000:%02X:00.0", pci->bus);
    snprintf(pci->busId, sizeof(pci->busId), "00000000:%02X:00.0", pci->bus);
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *pci)
{
    HM_ENTER_DEVICE(device);
    if (pci == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    pci->domain = 0;
    pci->bus = hm_card_bus(hm_device_index(card));
    pci->device = 0;
    pci->pciDeviceId = DEVICE_ID;
    pci->pciSubSystemId = SUBSYSTEM_ID;
    pci->baseClass = 0x03;
    pci->subClass = 0x02;
    snprintf(pci->busId, sizeof(pci->busId), "00000000:%02X:00.0", pci->bus);
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    HM_ENTER_DEVICE(device);
    if (major == NULL || minor == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *major = 9;
    *minor = 0;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *architecture)
{
    HM_ENTER_DEVICE(device);
    if (architecture == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *architecture = NVML_DEVICE_ARCH_HOPPER;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *brand)
{
    HM_ENTER_DEVICE(device);
    if (brand == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *brand = NVML_BRAND_NVIDIA;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned int *cores)
{
    HM_ENTER_DEVICE(device);
    if (cores == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *cores = HM_CARD_SMS * 128;
    return NVML_SUCCESS;
}
