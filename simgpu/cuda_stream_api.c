#include "cuda_capture.h"
#include "cuda_handle.h"
#include "cuda_pool.h"

#include <stdlib.h>
#include <string.h>

#define PRIORITY_HIGHEST (-5)

HM_EXPORT CUresult
cuStreamCreateWithPriority(CUstream *handle, unsigned int flags, int priority)
{
    HM_ENTER(HM_CURRENT);
    int kept = priority > 0 ? 0 : priority < PRIORITY_HIGHEST ? PRIORITY_HIGHEST : priority;

    if (handle == NULL || (flags & ~CU_STREAM_NON_BLOCKING) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = hm_stream_new(call.ctx, NULL, flags, kept)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamCreate(CUstream *handle, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);

    if (handle == NULL || (flags & ~CU_STREAM_NON_BLOCKING) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = hm_stream_new(call.ctx, NULL, flags, 0)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamDestroy_v2(CUstream handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_stream *stream = HM_HANDLE(HM_STREAM, handle);

    if (stream == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_capture_abandon(stream);
    hm_stream_retire(stream);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamSynchronize(CUstream handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result == CUDA_SUCCESS)
        result = hm_capture_refuse(stream);
    if (result == CUDA_SUCCESS)
        result = hm_capture_unsafe();
    if (result != CUDA_SUCCESS)
        return result;
    hm_stream_drain(stream);
    hm_pools_release(call.ctx->card);
    return call.ctx->broken;
}

HM_EXPORT CUresult
cuStreamQuery(CUstream handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result == CUDA_SUCCESS)
        result = hm_capture_refuse(stream);
    if (result == CUDA_SUCCESS)
        result = hm_capture_unsafe();
    if (result != CUDA_SUCCESS)
        return result;
    return hm_stream_idle(stream) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

HM_EXPORT CUresult
cuStreamGetPriority(CUstream handle, int *priority)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS || priority == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetFlags(CUstream handle, unsigned int *flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS || flags == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetId(CUstream handle, unsigned long long *id)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS || id == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *id = stream->id;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetCtx(CUstream handle, CUcontext *ctx)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS || ctx == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *ctx = stream->ctx->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetCtx_v2(CUstream handle, CUcontext *ctx, CUgreenCtx *green)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS || ctx == NULL || green == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *ctx = stream->ctx->handle;
    *green = NULL;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetDevice(CUstream handle, CUdevice *device)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_capture_unsafe(); /* so in the driver (580) */

    if (result == CUDA_SUCCESS)
        result = hm_stream_find(&call, handle, &stream);
    if (result != CUDA_SUCCESS || device == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *device = stream->ctx->device;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data)
{
    HM_ENTER(HM_CURRENT);
    struct hm_op op = {.kind = HM_OP_HOST, .host = {function, data}};
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return hm_stream_add(stream, &op, CU_GRAPH_NODE_TYPE_HOST);
}

/* A callback is a host function that is told the stream and its state. */
struct callback {
    CUstreamCallback function;
    CUstream stream;
    void *data;
};

static void
call_back(void *data)
{
    struct callback callback = *(struct callback *)data;

    free(data);
    callback.function(callback.stream, CUDA_SUCCESS, callback.data);
}

HM_EXPORT CUresult
cuStreamAddCallback(CUstream handle, CUstreamCallback function, void *data, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_op op = {.kind = HM_OP_HOST, .host = {.function = call_back}};
    struct callback *callback;
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result == CUDA_SUCCESS && (function == NULL || flags != 0))
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = hm_capture_refuse(stream);
    if (result != CUDA_SUCCESS)
        return result;
    callback = hm_allocate(sizeof(*callback));
    *callback = (struct callback){.function = function, .stream = handle, .data = data};
    op.host.data = callback;
    hm_stream_submit(stream, &op);
    return CUDA_SUCCESS;
}

static bool
attribute_known(CUstreamAttrID name)
{
    return name > 0 && (size_t)name < HM_COUNT(((struct hm_stream *)NULL)->attributes);
}

/* Attributes are kept, without effect. */
HM_EXPORT CUresult
cuStreamSetAttribute(CUstream handle, CUstreamAttrID name, const CUstreamAttrValue *value)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (value == NULL || !attribute_known(name))
        return CUDA_ERROR_INVALID_VALUE;
    stream->attributes[name] = *value;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetAttribute(CUstream handle, CUstreamAttrID name, CUstreamAttrValue *value)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (value == NULL || !attribute_known(name))
        return CUDA_ERROR_INVALID_VALUE;
    *value = stream->attributes[name];
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamCopyAttributes(CUstream to_handle, CUstream from_handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *to;
    struct hm_stream *from;
    CUresult result = hm_stream_find(&call, to_handle, &to);

    if (result == CUDA_SUCCESS)
        result = hm_stream_find(&call, from_handle, &from);
    if (result == CUDA_SUCCESS)
        memcpy(to->attributes, from->attributes, sizeof(to->attributes));
    return result;
}
