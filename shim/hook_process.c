/* The life of a process and of its contexts. */
#include "capture.h"
#include "context.h"
#include "gate.h"
#include "ledger.h"
#include "overhead.h"
#include "quota.h"

static bool primary_counted[HM_DEVICES]; /* the primary context is in the ledger; atomic */
static CUcontext primary[HM_DEVICES];

HM_HOOK CUresult
cuInit(unsigned int Flags)
{
    CUresult result;

    if (hm_depth == 0 && hm_tenant_state() == HM_BROKEN)
        return CUDA_ERROR_SYSTEM_NOT_READY;
    if (!hm_active())
        return REAL(cuInit(Flags));
    hm_visible_enter();
    result = REAL(cuInit(Flags));
    hm_visible_leave();
    if (result == CUDA_SUCCESS)
        hm_device_init();
    return result;
}

/* The tenant's index of a device; -1: there is no tenant. */
static int
context_device(CUdevice device)
{
    return hm_active() ? hm_device_index(device) : -1;
}

/*
 * A context is about to be made. Normally the driver does not show what was not given; where it does (a program that
 * changed CUDA_VISIBLE_DEVICES after our look at it), the device does not exist for this tenant all the same.
 */
static CUresult
context_begin(int device)
{
    if (device < 0 && hm_active() && hm_device_count() > 0)
        return CUDA_ERROR_INVALID_DEVICE;
    return hm_context_begin(device) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult
context_made(int device, const CUcontext *context, CUresult result)
{
    struct hm_object object = {.type = HM_CONTEXT, .charge = {.device = device}};

    hm_context_end(device, result == CUDA_SUCCESS);
    if (result == CUDA_SUCCESS && device >= 0) {
        object.key = (uint64_t)*context;
        hm_object_put(&object);
    }
    return result;
}

/* A context that context_made knows is about to go: its device, or -1. */
static int
context_goes(CUcontext context, struct hm_object *object)
{
    return hm_active() && hm_object_take(HM_CONTEXT, (uint64_t)context, object)
               ? object->charge.device
               : -1;
}

static CUresult
context_gone(int device, const struct hm_object *object, CUresult result)
{
    struct hm_object again;

    if (device < 0)
        return result;
    again = *object;
    hm_quota_done(&again.charge);
    if (result != CUDA_SUCCESS) {
        hm_object_put(&again);
        return result;
    }
    hm_object_purge((CUcontext)again.key);
    hm_context_gone(device);
    return result;
}

/* Contexts are made in four versions that differ in their arguments only. */
#define CREATE(dev, pctx, call)                                                      \
    ({                                                                               \
        int hm_device = context_device(dev);                                         \
        CUresult hm_may = context_begin(hm_device);                                  \
        hm_may == CUDA_SUCCESS ? context_made(hm_device, pctx, REAL(call)) : hm_may; \
    })

HM_HOOK CUresult
cuCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev)
{
    return CREATE(dev, pctx, cuCtxCreate(pctx, flags, dev));
}

HM_HOOK CUresult
cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev)
{
    return CREATE(dev, pctx, cuCtxCreate_v2(pctx, flags, dev));
}

HM_HOOK CUresult
cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags,
               CUdevice dev)
{
    return CREATE(dev, pctx, cuCtxCreate_v3(pctx, paramsArray, numParams, flags, dev));
}

HM_HOOK CUresult
cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags,
               CUdevice dev)
{
    return CREATE(dev, pctx, cuCtxCreate_v4(pctx, ctxCreateParams, flags, dev));
}

HM_HOOK CUresult
cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev, unsigned int flags)
{
    return CREATE(dev, (CUcontext *)phCtx, cuGreenCtxCreate(phCtx, desc, dev, flags));
}

#define DESTROY(context, call)                                               \
    ({                                                                       \
        struct hm_object hm_object;                                          \
        int hm_device = context_goes((CUcontext)(context), &hm_object);      \
        CUresult hm_gone;                                                    \
        hm_gate_context_goes();                                              \
        hm_gone = REAL(call);                                                \
        hm_gate_context_gone((CUcontext)(context), hm_gone == CUDA_SUCCESS); \
        context_gone(hm_device, &hm_object, hm_gone);                        \
    })

HM_HOOK CUresult
cuCtxDestroy(CUcontext ctx)
{
    return DESTROY(ctx, cuCtxDestroy(ctx));
}

HM_HOOK CUresult
cuCtxDestroy_v2(CUcontext ctx)
{
    return DESTROY(ctx, cuCtxDestroy_v2(ctx));
}

HM_HOOK CUresult
cuGreenCtxDestroy(CUgreenCtx hCtx)
{
    return DESTROY(hCtx, cuGreenCtxDestroy(hCtx));
}

/* Takes one reference; cuCtxAttach, which would have given a second one, has been deprecated since CUDA 4. */
HM_HOOK CUresult
cuCtxDetach(CUcontext ctx)
{
    return DESTROY(ctx, cuCtxDetach(ctx));
}

/* A primary context is made by its first retain and goes with its last release or a reset. */
HM_HOOK CUresult
cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
    int device = context_device(dev);
    CUresult result;

    if (device >= 0 && __atomic_exchange_n(&primary_counted[device], true, __ATOMIC_ACQ_REL))
        return REAL(cuDevicePrimaryCtxRetain(pctx, dev));
    result = context_begin(device);
    if (result == CUDA_SUCCESS)
        result = context_made(device, pctx, REAL(cuDevicePrimaryCtxRetain(pctx, dev)));
    if (device >= 0 && result == CUDA_SUCCESS)
        primary[device] = *pctx;
    else if (device >= 0)
        __atomic_store_n(&primary_counted[device], false, __ATOMIC_RELEASE);
    return result;
}

/* After a release or reset: if the context is gone, so is what died with it. */
static CUresult
primary_released(CUdevice dev, CUresult result)
{
    int device = context_device(dev), active = 1;
    struct hm_object object;
    unsigned int flags;
    bool gone = device >= 0 && result == CUDA_SUCCESS &&
                REAL(cuDevicePrimaryCtxGetState(dev, &flags, &active)) == CUDA_SUCCESS && !active;

    hm_gate_context_gone(device >= 0 ? primary[device] : NULL, gone);
    if (!gone || !__atomic_exchange_n(&primary_counted[device], false, __ATOMIC_ACQ_REL))
        return result;
    return context_gone(context_goes(primary[device], &object), &object, result);
}

#define RELEASE(dev, call)                 \
    ({                                     \
        hm_gate_context_goes();            \
        primary_released(dev, REAL(call)); \
    })

HM_HOOK CUresult
cuDevicePrimaryCtxRelease(CUdevice dev)
{
    return RELEASE(dev, cuDevicePrimaryCtxRelease(dev));
}

HM_HOOK CUresult
cuDevicePrimaryCtxRelease_v2(CUdevice dev)
{
    return RELEASE(dev, cuDevicePrimaryCtxRelease_v2(dev));
}

HM_HOOK CUresult
cuDevicePrimaryCtxReset(CUdevice dev)
{
    return RELEASE(dev, cuDevicePrimaryCtxReset(dev));
}

HM_HOOK CUresult
cuDevicePrimaryCtxReset_v2(CUdevice dev)
{
    return RELEASE(dev, cuDevicePrimaryCtxReset_v2(dev));
}

/* What a larger limit takes of the card, bytes. The stack is for every thread that the card can hold. */
static uint64_t
limit_growth(CUlimit limit, size_t value, int device)
{
    int processors = 0, threads = 0;
    size_t now = 0;

    if (REAL(cuCtxGetLimit(&now, limit)) != CUDA_SUCCESS || value <= now)
        return 0;
    if (limit == CU_LIMIT_MALLOC_HEAP_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE)
        return value - now;
    if (limit != CU_LIMIT_STACK_SIZE)
        return 0;
    REAL(cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                              hm_device_handle(device)));
    REAL(cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
                              hm_device_handle(device)));
    return (value - now) * (uint64_t)processors * (uint64_t)threads;
}

/* The driver may take it only at the next launch, so it is charged here and measured later. */
HM_HOOK CUresult
cuCtxSetLimit(CUlimit limit, size_t value)
{
    int device = hm_device_current();
    uint64_t bytes = device >= 0 ? limit_growth(limit, value, device) : 0;
    CUresult result;

    if (bytes > 0 && (hm_slot() == NULL || !hm_ledger_overhead(device, &hm_slot()->use[device],
                                                               (int64_t)bytes, false))) {
        hm_quota_refused(device, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    result = REAL(cuCtxSetLimit(limit, value));
    if (bytes > 0 && result != CUDA_SUCCESS)
        hm_ledger_overhead(device, &hm_slot()->use[device], -(int64_t)bytes, true);
    return result;
}

/* The driver takes a block for every fourth stream and keeps it (driver 580). */
static bool
stream_fits(void)
{
    int device = hm_device_current();

    if (hm_overhead_load_fits(device, HM_BLOCK_BYTES))
        return true;
    hm_quota_refused(device, HM_BLOCK_BYTES);
    return false;
}

HM_HOOK CUresult
cuStreamCreate(CUstream *phStream, unsigned int Flags)
{
    return stream_fits() ? REAL(cuStreamCreate(phStream, Flags)) : CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority)
{
    return stream_fits() ? REAL(cuStreamCreateWithPriority(phStream, flags, priority))
                         : CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuGreenCtxStreamCreate(CUstream *phStream, CUgreenCtx greenCtx, unsigned int flags, int priority)
{
    return stream_fits() ? REAL(cuGreenCtxStreamCreate(phStream, greenCtx, flags, priority))
                         : CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuStreamDestroy(CUstream hStream)
{
    hm_gate_stream_goes(hStream);
    hm_capture_stream_goes(hStream);
    return REAL(cuStreamDestroy(hStream));
}

HM_HOOK CUresult
cuStreamDestroy_v2(CUstream hStream)
{
    hm_gate_stream_goes(hStream);
    hm_capture_stream_goes(hStream);
    return REAL(cuStreamDestroy_v2(hStream));
}
