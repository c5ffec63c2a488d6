#include "cuda_capture.h"

#include <stdlib.h>

#include "cuda_handle.h"

static CUstreamCaptureStatus
status_of(const struct hm_stream *stream)
{
    if (stream->capture == NULL)
        return CU_STREAM_CAPTURE_STATUS_NONE;
    return stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                    : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

HM_EXPORT CUresult
cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (status == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    result = hm_capture_check(stream);
    *status = status_of(stream);
    return result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT ? result : CUDA_SUCCESS;
}

/* The array of handles lives until this thread asks again. */
static const CUgraphNode *
tail_handles(const struct hm_stream *stream)
{
    static __thread CUgraphNode *handles;

    free(handles);
    handles = hm_allocate((stream->tail_count + 1) * sizeof(CUgraphNode));
    for (size_t i = 0; i < stream->tail_count; i++)
        handles[i] = stream->tail[i]->handle;
    return handles;
}

struct info {
    CUstreamCaptureStatus *status;
    cuuint64_t *id;
    CUgraph *graph;
    const CUgraphNode **dependencies;
    const CUgraphEdgeData **edges;
    size_t *count;
};

static CUresult
get_info(const struct hm_call *call, CUstream handle, const struct info *info)
{
    struct hm_stream *stream;
    CUresult result = hm_stream_find(call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (info->status == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    result = hm_capture_check(stream);
    if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
        return result;
    *info->status = status_of(stream);
    if (*info->status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
        return CUDA_SUCCESS;
    if (info->id != NULL)
        *info->id = stream->capture->id;
    if (info->graph != NULL)
        *info->graph = stream->capture->graph->handle;
    if (info->dependencies != NULL)
        *info->dependencies = tail_handles(stream);
    if (info->edges != NULL)
        *info->edges = NULL;
    if (info->count != NULL)
        *info->count = stream->tail_count;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id)
{
    HM_ENTER(HM_CURRENT);
    struct info info = {.status = status, .id = id};

    return get_info(&call, handle, &info);
}

HM_EXPORT CUresult
cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                          CUgraph *graph, const CUgraphNode **dependencies, size_t *count)
{
    HM_ENTER(HM_CURRENT);
    struct info info = {status, id, graph, dependencies, NULL, count};

    return get_info(&call, handle, &info);
}

HM_EXPORT CUresult
cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                          CUgraph *graph, const CUgraphNode **dependencies,
                          const CUgraphEdgeData **edges, size_t *count)
{
    HM_ENTER(HM_CURRENT);
    struct info info = {status, id, graph, dependencies, edges, count};

    return get_info(&call, handle, &info);
}

static CUresult
update(const struct hm_call *call, CUstream handle, CUgraphNode *dependencies, size_t count,
       unsigned int flags)
{
    struct hm_stream *stream;
    CUresult result = hm_stream_find(call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    if (stream->capture == NULL || stream->capture->invalid)
        return CUDA_ERROR_ILLEGAL_STATE;
    if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES)
        hm_capture_set_tail(stream, NULL, 0);
    for (size_t i = 0; i < count; i++) {
        struct hm_node *node = HM_HANDLE(HM_NODE, dependencies[i]);

        if (node == NULL)
            return CUDA_ERROR_INVALID_VALUE;
        hm_capture_join(stream, stream->capture, &node, 1);
    }
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode *dependencies, size_t count,
                                  unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    return update(&call, handle, dependencies, count, flags);
}

HM_EXPORT CUresult
cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode *dependencies,
                                     const CUgraphEdgeData *edges, size_t count, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    (void)edges;
    return update(&call, handle, dependencies, count, flags);
}
