#include "cuda_context.h"

#include "cuda_handle.h"

static struct hm_context *primaries[HM_CARDS_MAX];
static unsigned int primary_flags[HM_CARDS_MAX];

struct hm_context *
hm_primary(CUdevice device)
{
    return primaries[device];
}

CUresult
hm_primary_need(CUdevice device, struct hm_context **ctx)
{
    CUresult result = CUDA_SUCCESS;

    if (primaries[device] == NULL)
        result = hm_context_new(device, primary_flags[device], &primaries[device]);
    *ctx = primaries[device];
    return result;
}

static void
primary_delete(CUdevice device)
{
    struct hm_context *ctx = primaries[device];

    primaries[device] = NULL;
    hm_context_delete(ctx);
}

HM_EXPORT CUresult
cuDevicePrimaryCtxRetain(CUcontext *handle, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_context *ctx;
    CUresult result;

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    result = hm_primary_need(device, &ctx);
    if (result != CUDA_SUCCESS)
        return result;
    ctx->retained++;
    *handle = ctx->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (primaries[device] == NULL || primaries[device]->retained == 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (--primaries[device]->retained == 0)
        primary_delete(device);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (primaries[device] != NULL)
        primary_delete(device);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
    HM_ENTER(HM_INITIALIZED);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (flags == NULL || active == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = primaries[device] != NULL ? primaries[device]->flags : primary_flags[device];
    *active = primaries[device] != NULL;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
    HM_ENTER(HM_INITIALIZED);

    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    primary_flags[device] = flags;
    if (primaries[device] != NULL)
        primaries[device]->flags = flags;
    return CUDA_SUCCESS;
}
