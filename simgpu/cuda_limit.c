#include "cuda_capture.h"
#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_pool.h"

#define STACK_DEFAULT 1024
#define FIFO_DEFAULT (HM_MIB + HM_MIB / 2)
#define HEAP_DEFAULT (8 * HM_MIB)
#define THREADS_PER_SM 2048

void
hm_context_default_limits(struct hm_context *ctx)
{
    ctx->limits[CU_LIMIT_STACK_SIZE] = STACK_DEFAULT;
    ctx->limits[CU_LIMIT_PRINTF_FIFO_SIZE] = FIFO_DEFAULT;
    ctx->limits[CU_LIMIT_MALLOC_HEAP_SIZE] = HEAP_DEFAULT;
    ctx->limits[CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2;
    ctx->limits[CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048;
    ctx->limits[CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64;
}

/* What a context's own 520 MiB do not cover. */
static uint64_t
blocks_beyond(uint64_t bytes, uint64_t covered)
{
    return bytes > covered ? hm_blocks(bytes - covered) : 0;
}

CUresult
hm_context_fit_limits(struct hm_context *ctx)
{
    uint64_t threads = (uint64_t)HM_CARD_SMS * THREADS_PER_SM;
    uint64_t stack = ctx->limits[CU_LIMIT_STACK_SIZE];
    uint64_t wanted = blocks_beyond(stack * threads, STACK_DEFAULT * threads) +
                      blocks_beyond(ctx->limits[CU_LIMIT_MALLOC_HEAP_SIZE], HEAP_DEFAULT) +
                      blocks_beyond(ctx->limits[CU_LIMIT_PRINTF_FIFO_SIZE], FIFO_DEFAULT);

    if (wanted > ctx->limit_blocks && !hm_blocks_take(ctx->card, wanted - ctx->limit_blocks))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (wanted < ctx->limit_blocks)
        hm_blocks_give(ctx->card, ctx->limit_blocks - wanted);
    ctx->limit_blocks = wanted;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxSetLimit(CUlimit limit, size_t value)
{
    HM_ENTER(HM_CURRENT);
    size_t before;
    CUresult result;

    if (limit < 0 || limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    if (value > UINT32_MAX && limit == CU_LIMIT_STACK_SIZE)
        return CUDA_ERROR_INVALID_VALUE;
    before = call.ctx->limits[limit];
    call.ctx->limits[limit] = value;
    result = hm_context_fit_limits(call.ctx);
    if (result != CUDA_SUCCESS)
        call.ctx->limits[limit] = before;
    return result;
}

HM_EXPORT CUresult
cuCtxGetLimit(size_t *value, CUlimit limit)
{
    HM_ENTER(HM_CURRENT);

    if (value == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (limit < 0 || limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    *value = call.ctx->limits[limit];
    return CUDA_SUCCESS;
}

static CUresult
synchronize(struct hm_context *ctx)
{
    CUresult result = hm_capture_refuse_context(ctx);

    if (result == CUDA_SUCCESS)
        result = hm_capture_unsafe();
    if (result != CUDA_SUCCESS)
        return result;
    hm_context_drain(ctx);
    hm_pools_release(ctx->card);
    return ctx->broken;
}

HM_EXPORT CUresult
cuCtxSynchronize(void)
{
    HM_ENTER(HM_CURRENT);
    return synchronize(call.ctx);
}

/* The forms of CUDA 13 take a context, NULL being the current one. */
static struct hm_context *
given_or_current(CUcontext handle)
{
    return handle != NULL ? hm_context_find(handle) : hm_context_current();
}

HM_EXPORT CUresult
cuCtxSynchronize_v2(CUcontext handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_context *ctx = given_or_current(handle);

    return ctx == NULL ? CUDA_ERROR_INVALID_CONTEXT : synchronize(ctx);
}

HM_EXPORT CUresult
cuCtxGetDevice(CUdevice *device)
{
    HM_ENTER(HM_CURRENT);

    if (device == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *device = call.ctx->device;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetDevice_v2(CUdevice *device, CUcontext handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_context *ctx = given_or_current(handle);

    if (ctx == NULL || device == NULL)
        return ctx == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_INVALID_VALUE;
    *device = ctx->device;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetFlags(unsigned int *flags)
{
    HM_ENTER(HM_CURRENT);

    if (flags == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = call.ctx->flags;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxSetFlags(unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    call.ctx->flags = flags;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetId(CUcontext handle, unsigned long long *id)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_context *ctx = given_or_current(handle);

    if (ctx == NULL || id == NULL)
        return ctx == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_INVALID_VALUE;
    *id = ctx->id;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetApiVersion(CUcontext handle, unsigned int *version)
{
    HM_ENTER(HM_INITIALIZED);

    if (given_or_current(handle) == NULL || version == NULL)
        return version == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    *version = 3020;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    HM_ENTER(HM_CURRENT);

    if (least != NULL)
        *least = 0;
    if (greatest != NULL)
        *greatest = -5;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetCacheConfig(CUfunc_cache *config)
{
    HM_ENTER(HM_CURRENT);

    if (config == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *config = call.ctx->cache;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxSetCacheConfig(CUfunc_cache config)
{
    HM_ENTER(HM_CURRENT);
    call.ctx->cache = config;
    return CUDA_SUCCESS;
}
