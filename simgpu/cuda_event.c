#include "cuda_event.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_capture.h"
#include "cuda_handle.h"
#include "cuda_object.h"
#include "cuda_pool.h"

void
hm_event_delete(struct hm_event *event)
{
    hm_handle_drop((uint64_t)(uintptr_t)event->handle);
    hm_record_drop(event->record);
    free(event->nodes);
    free(event);
}

void
hm_event_mark(struct hm_event *event, struct hm_stream *stream)
{
    hm_record_drop(event->record);
    event->record = hm_stream_mark(stream);
    event->capture_id = 0;
}

void
hm_event_wait_on(const struct hm_event *event, struct hm_stream *stream)
{
    struct hm_op op = {.kind = HM_OP_WAIT, .record = event->record};

    if (event->record == NULL)
        return;
    hm_record_hold(event->record);
    hm_stream_submit(stream, &op);
}

HM_EXPORT CUresult
cuEventCreate(CUevent *handle, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_event *event;

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    event = hm_allocate(sizeof(*event));
    event->ctx = call.ctx;
    event->flags = flags;
    event->handle = (CUevent)(uintptr_t)hm_handle_make(HM_EVENT, event, call.ctx);
    *handle = event->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuEventDestroy_v2(CUevent handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_event *event = HM_HANDLE(HM_EVENT, handle);

    if (event == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_event_delete(event);
    return CUDA_SUCCESS;
}

/* Remembers where in the capture the event stands. */
static void
capture_record(struct hm_event *event, struct hm_stream *stream)
{
    event->capture_id = stream->capture->id;
    event->node_count = stream->tail_count;
    free(event->nodes);
    event->nodes = hm_allocate((stream->tail_count + 1) * sizeof(*event->nodes));
    memcpy(event->nodes, stream->tail, stream->tail_count * sizeof(*event->nodes));
}

static CUresult
record(const struct hm_call *call, CUevent handle, CUstream stream_handle, unsigned int flags)
{
    struct hm_event *event = HM_HANDLE(HM_EVENT, handle);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(call, stream_handle, &stream);

    if (result == CUDA_SUCCESS && (event == NULL || event->ctx != stream->ctx))
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS)
        result = hm_capture_check(stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream->capture == NULL) {
        hm_event_mark(event, stream);
    } else if ((flags & CU_EVENT_RECORD_EXTERNAL) != 0) {
        struct hm_node *node = hm_node_new(stream->capture->graph, CU_GRAPH_NODE_TYPE_EVENT_RECORD);

        node->event = handle;
        hm_capture_append(stream, node);
    } else {
        capture_record(event, stream);
    }
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuEventRecord(CUevent handle, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    return record(&call, handle, stream, CU_EVENT_RECORD_DEFAULT);
}

HM_EXPORT CUresult
cuEventRecordWithFlags(CUevent handle, CUstream stream, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    return record(&call, handle, stream, flags);
}

static CUresult
capture_wait(struct hm_stream *stream, const struct hm_event *event, CUevent handle,
             unsigned int flags)
{
    struct hm_capture *capture = hm_capture_by_id(event->capture_id);

    if (stream->capture != NULL && (flags & CU_EVENT_WAIT_EXTERNAL) != 0) {
        struct hm_node *node = hm_node_new(stream->capture->graph, CU_GRAPH_NODE_TYPE_WAIT_EVENT);

        node->event = handle;
        hm_capture_append(stream, node);
        return CUDA_SUCCESS;
    }
    if (capture == NULL) {
        hm_capture_invalidate(stream->capture);
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->capture != NULL && stream->capture != capture) {
        hm_capture_invalidate(stream->capture);
        hm_capture_invalidate(capture);
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    /* A capture over several contexts is not simulated. */
    if (stream->ctx != capture->origin->ctx)
        return CUDA_ERROR_NOT_SUPPORTED;
    hm_capture_join(stream, capture, event->nodes, event->node_count);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct hm_event *event = HM_HANDLE(HM_EVENT, handle);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, stream_handle, &stream);

    if (result == CUDA_SUCCESS && event == NULL)
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS)
        result = hm_capture_check(stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream->capture != NULL || event->capture_id != 0)
        return capture_wait(stream, event, handle, flags);
    hm_event_wait_on(event, stream);
    return CUDA_SUCCESS;
}

/* The forms for a whole context break every capture in it. */
HM_EXPORT CUresult
cuCtxRecordEvent(CUcontext handle, CUevent event_handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_context *ctx = hm_context_find(handle);
    struct hm_event *event = HM_HANDLE(HM_EVENT, event_handle);
    CUresult result;

    if (ctx == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (event == NULL || event->ctx != ctx)
        return CUDA_ERROR_INVALID_HANDLE;
    result = hm_capture_refuse_context(ctx);
    if (result != CUDA_SUCCESS)
        return result;
    hm_streams_join(hm_stream_legacy(ctx));
    hm_event_mark(event, hm_stream_legacy(ctx));
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuCtxWaitEvent(CUcontext handle, CUevent event_handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_context *ctx = hm_context_find(handle);
    const struct hm_event *event = HM_HANDLE(HM_EVENT, event_handle);
    CUresult result;

    if (ctx == NULL || event == NULL)
        return ctx == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_INVALID_HANDLE;
    result = hm_capture_refuse_context(ctx);
    for (struct hm_stream *stream = ctx->streams; stream != NULL && result == CUDA_SUCCESS;
         stream = stream->next)
        hm_event_wait_on(event, stream);
    return result;
}

/* An event recorded in a capture is no moment: asking for it breaks the capture. */
static CUresult
refuse_captured(const struct hm_event *event)
{
    struct hm_capture *capture = hm_capture_by_id(event->capture_id);

    if (event->capture_id == 0)
        return CUDA_SUCCESS;
    if (capture != NULL)
        hm_capture_invalidate(capture);
    return CUDA_ERROR_CAPTURED_EVENT;
}

HM_EXPORT CUresult
cuEventQuery(CUevent handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_event *event = HM_HANDLE(HM_EVENT, handle);
    CUresult result = event == NULL ? CUDA_ERROR_INVALID_HANDLE : refuse_captured(event);

    if (result == CUDA_SUCCESS)
        result = hm_capture_unsafe();
    if (result != CUDA_SUCCESS || event->record == NULL)
        return result;
    hm_streams_pump(false);
    return hm_record_done(event->record) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

HM_EXPORT CUresult
cuEventSynchronize(CUevent handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_event *event = HM_HANDLE(HM_EVENT, handle);
    CUresult result = event == NULL ? CUDA_ERROR_INVALID_HANDLE : refuse_captured(event);
    uint32_t card;

    if (result == CUDA_SUCCESS)
        result = hm_capture_unsafe();
    if (result != CUDA_SUCCESS || event->record == NULL)
        return result;
    card = event->ctx->card;
    hm_record_wait(event->record);
    hm_pools_release(card);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuEventElapsedTime_v2(float *milliseconds, CUevent start_handle, CUevent end_handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_event *start = HM_HANDLE(HM_EVENT, start_handle);
    const struct hm_event *end = HM_HANDLE(HM_EVENT, end_handle);

    if (milliseconds == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (start == NULL || end == NULL || start->record == NULL || end->record == NULL ||
        ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) != 0)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_streams_pump(false);
    if (!hm_record_done(start->record) || !hm_record_done(end->record))
        return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)((double)(end->record->time_ns - start->record->time_ns) / 1e6);
    return CUDA_SUCCESS;
}
