#include "cuda_context.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

HM_EXPORT CUresult
cuDeviceGetCount(int *count)
{
    HM_ENTER(HM_INITIALIZED);

    if (count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *count = hm_driver.device_count;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGet(CUdevice *device, int ordinal)
{
    HM_ENTER(HM_INITIALIZED);

    if (device == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetName(char *name, int length, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (name == NULL || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, (size_t)length, "%s", HM_CARD_NAME);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (uuid == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    hm_card_uuid(hm_driver.cards[device], (unsigned char *)uuid->bytes);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (bytes == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = hm_driver.state->card[hm_driver.cards[device]].blocks_total * HM_BLOCK_BYTES;
    return CUDA_SUCCESS;
}

/* The first version counts in 32 bits. */
HM_EXPORT CUresult
cuDeviceTotalMem(unsigned int *bytes, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    uint64_t total;

    if (bytes == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    total = hm_driver.state->card[hm_driver.cards[device]].blocks_total * HM_BLOCK_BYTES;
    *bytes = total > UINT32_MAX ? UINT32_MAX : (unsigned int)total;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetPCIBusId(char *text, int length, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (text == NULL || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (length < 13)
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(text, (size_t)length, "0000:%02X:00.0", hm_card_bus(hm_driver.cards[device]));
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetByPCIBusId(CUdevice *device, const char *text)
{
    HM_ENTER(HM_INITIALIZED);
    unsigned int domain = 0;
    unsigned int bus;
    unsigned int slot;

    if (device == NULL || text == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (sscanf(text, "%x:%x:%x", &domain, &bus, &slot) != 3 &&
        sscanf(text, "%x:%x", &bus, &slot) != 2)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < hm_driver.device_count; i++) {
        if (hm_card_bus(hm_driver.cards[i]) == bus && domain == 0 && slot == 0) {
            *device = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

HM_EXPORT CUresult
cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (major == NULL || minor == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *major = 9;
    *minor = 0;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetProperties(CUdevprop *properties, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (properties == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *properties = (CUdevprop){
        .maxThreadsPerBlock = 1024,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .sharedMemPerBlock = 49152,
        .totalConstantMemory = 65536,
        .SIMDWidth = 32,
        .memPitch = 2147483647,
        .regsPerBlock = 65536,
        .clockRate = 1980000,
        .textureAlign = 512,
    };
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
    HM_ENTER(HM_INITIALIZED);

    if (can == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device) || !hm_device_valid(peer))
        return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice device, CUdevice peer)
{
    HM_ENTER(HM_INITIALIZED);

    if (value == NULL || device == peer)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device) || !hm_device_valid(peer))
        return CUDA_ERROR_INVALID_DEVICE;
    *value = attribute != CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxEnablePeerAccess(CUcontext handle, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_context *peer = hm_context_find(handle);

    if (peer == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (peer->card == call.ctx->card)
        return CUDA_ERROR_INVALID_DEVICE;
    if ((call.ctx->peers >> peer->card & 1) != 0)
        return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    call.ctx->peers |= 1ull << peer->card;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxDisablePeerAccess(CUcontext handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_context *peer = hm_context_find(handle);

    if (peer == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    if ((call.ctx->peers >> peer->card & 1) == 0)
        return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    call.ctx->peers &= ~(1ull << peer->card);
    return CUDA_SUCCESS;
}
