#include "cuda_context.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_object.h"
#include "cuda_stream.h"
#include "sim_clock.h"

#define CONTEXT_MIB 520
#define CONTEXT_REAL_NS 210000000
#define STACK_DEPTH 64

struct context_stack {
    CUcontext handles[STACK_DEPTH];
    int depth;
};

static __thread struct context_stack stack;
static uint64_t last_id;

struct hm_context *
hm_context_find(CUcontext handle)
{
    return HM_HANDLE(HM_CONTEXT, handle);
}

struct hm_context *
hm_context_current(void)
{
    return stack.depth == 0 ? NULL : hm_context_find(stack.handles[stack.depth - 1]);
}

void
hm_context_push(struct hm_context *ctx)
{
    if (stack.depth < STACK_DEPTH)
        stack.handles[stack.depth++] = ctx->handle;
}

static CUresult
occupy(struct hm_context *ctx)
{
    struct hm_state *state = hm_driver.state;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

    hm_state_lock();
    if (hm_card_take(ctx->card, ctx->blocks)) {
        ctx->channel = hm_engine_open(&state->card[ctx->card].engine, hm_process_slot());
        if (ctx->channel >= 0) {
            state->slots[hm_process_slot()].contexts[ctx->card]++;
            result = CUDA_SUCCESS;
        } else {
            hm_card_give(ctx->card, ctx->blocks);
        }
    }
    hm_state_unlock();
    return result;
}

static void
vacate(const struct hm_context *ctx)
{
    struct hm_state *state = hm_driver.state;

    hm_state_lock();
    hm_engine_close(&state->card[ctx->card].engine, ctx->channel);
    hm_card_give(ctx->card, ctx->blocks + ctx->limit_blocks);
    state->slots[hm_process_slot()].contexts[ctx->card]--;
    hm_state_unlock();
}

CUresult
hm_context_new(CUdevice device, unsigned int flags, struct hm_context **made)
{
    struct hm_context *ctx = hm_allocate(sizeof(*ctx));
    CUresult result;

    ctx->device = device;
    ctx->card = hm_driver.cards[device];
    ctx->flags = flags;
    ctx->blocks = hm_blocks(hm_env_number("HAMIRT_SIM_CONTEXT_MIB", CONTEXT_MIB) * HM_MIB);
    ctx->id = ++last_id;
    hm_context_default_limits(ctx);
    result = occupy(ctx);
    if (result != CUDA_SUCCESS) {
        free(ctx);
        return result;
    }
    if (hm_env_number("HAMIRT_SIM_REALTIME", 0) != 0)
        hm_clock_pause(CONTEXT_REAL_NS);
    ctx->handle = (CUcontext)(uintptr_t)hm_handle_make(HM_CONTEXT, ctx, NULL);
    *made = ctx;
    return CUDA_SUCCESS;
}

void
hm_context_delete(struct hm_context *ctx)
{
    struct hm_range *range;

    hm_streams_abandon(ctx);
    hm_objects_delete(ctx);
    while ((range = hm_range_of(ctx)) != NULL)
        hm_memory_delete(range);
    vacate(ctx);
    hm_handle_drop((uint64_t)(uintptr_t)ctx->handle);
    free(ctx);
}

static CUresult
create(CUcontext *handle, unsigned int flags, CUdevice device)
{
    struct hm_context *ctx;
    CUresult result;

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hm_device_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    result = hm_context_new(device, flags, &ctx);
    if (result != CUDA_SUCCESS)
        return result;
    hm_context_push(ctx);
    *handle = ctx->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxCreate_v2(CUcontext *handle, unsigned int flags, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    return create(handle, flags, device);
}

HM_EXPORT CUresult
cuCtxCreate_v3(CUcontext *handle, CUexecAffinityParam *affinity, int count, unsigned int flags,
               CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    if (count > 0 && affinity != NULL)
        return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
    return create(handle, flags, device);
}

HM_EXPORT CUresult
cuCtxCreate_v4(CUcontext *handle, CUctxCreateParams *params, unsigned int flags, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    if (params != NULL && (params->numExecAffinityParams > 0 || params->cigParams != NULL))
        return CUDA_ERROR_NOT_SUPPORTED;
    return create(handle, flags, device);
}

HM_EXPORT CUresult
cuCtxDestroy_v2(CUcontext handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_context *ctx = hm_context_find(handle);

    if (ctx == NULL || hm_primary(ctx->device) == ctx)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (hm_context_current() == ctx)
        stack.depth--;
    hm_context_delete(ctx);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxPushCurrent_v2(CUcontext handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_context *ctx = hm_context_find(handle);

    if (ctx == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    hm_context_push(ctx);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxPopCurrent_v2(CUcontext *handle)
{
    HM_ENTER(HM_INITIALIZED);

    if (stack.depth == 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    stack.depth--;
    if (handle != NULL)
        *handle = stack.handles[stack.depth];
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxSetCurrent(CUcontext handle)
{
    HM_ENTER(HM_INITIALIZED);

    if (handle != NULL && hm_context_find(handle) == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (stack.depth > 0)
        stack.depth--;
    if (handle != NULL)
        hm_context_push(hm_context_find(handle));
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxGetCurrent(CUcontext *handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_context *ctx = hm_context_current();

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = ctx != NULL ? ctx->handle : NULL;
    return CUDA_SUCCESS;
}
