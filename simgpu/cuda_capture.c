#include "cuda_capture.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_handle.h"

static struct hm_capture *captures;
static uint64_t last_id;
static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

void
hm_capture_invalidate(struct hm_capture *capture)
{
    capture->invalid = true;
}

struct hm_capture *
hm_capture_by_id(uint64_t id)
{
    struct hm_capture *capture = captures;

    while (capture != NULL && capture->id != id)
        capture = capture->next;
    return capture;
}

/* Whether the rules of cuThreadExchangeStreamCaptureMode let `capture` forbid unsafe calls here. */
static bool
forbids(const struct hm_capture *capture)
{
    bool own = capture->thread == (unsigned long)pthread_self();

    if (capture->invalid || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return false;
    if (own)
        return capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    return capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
           thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

CUresult
hm_capture_unsafe(void)
{
    CUresult result = CUDA_SUCCESS;

    for (struct hm_capture *capture = captures; capture != NULL; capture = capture->next) {
        if (forbids(capture)) {
            hm_capture_invalidate(capture);
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return result;
}

CUresult
hm_capture_refuse(struct hm_stream *stream)
{
    if (stream->capture == NULL)
        return hm_capture_check(stream);
    if (stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    hm_capture_invalidate(stream->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult
hm_capture_refuse_context(struct hm_context *ctx)
{
    CUresult result = CUDA_SUCCESS;

    for (struct hm_stream *stream = ctx->streams; stream != NULL; stream = stream->next) {
        if (stream->capture != NULL) {
            hm_capture_invalidate(stream->capture);
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return result;
}

/* The legacy stream would wait for the capturing ones, which is no work yet. */
static CUresult
check_implicit(struct hm_stream *legacy)
{
    CUresult result = CUDA_SUCCESS;

    for (struct hm_stream *stream = legacy->ctx->streams; stream != NULL; stream = stream->next) {
        if (stream->capture != NULL && (stream->flags & CU_STREAM_NON_BLOCKING) == 0) {
            hm_capture_invalidate(stream->capture);
            result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    }
    return result;
}

CUresult
hm_capture_check(struct hm_stream *stream)
{
    if (captures == NULL)
        return CUDA_SUCCESS;
    if (stream->capture != NULL)
        return stream->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    if (stream == hm_stream_legacy(stream->ctx))
        return check_implicit(stream);
    return CUDA_SUCCESS;
}

void
hm_capture_set_tail(struct hm_stream *stream, struct hm_node *const *nodes, size_t count)
{
    struct hm_node **tail = hm_allocate((count + 1) * sizeof(*tail));

    if (count > 0)
        memcpy(tail, nodes, count * sizeof(*tail));
    free(stream->tail);
    stream->tail = tail;
    stream->tail_count = count;
}

void
hm_capture_append(struct hm_stream *stream, struct hm_node *node)
{
    for (size_t i = 0; i < stream->tail_count; i++)
        hm_node_depend(node, stream->tail[i]);
    hm_capture_set_tail(stream, &node, 1);
}

void
hm_capture_join(struct hm_stream *stream, struct hm_capture *capture, struct hm_node *const *nodes,
                size_t count)
{
    size_t before = stream->capture == capture ? stream->tail_count : 0;
    struct hm_node **all = hm_allocate((before + count + 1) * sizeof(*all));

    if (before > 0)
        memcpy(all, stream->tail, before * sizeof(*all));
    if (count > 0)
        memcpy(all + before, nodes, count * sizeof(*all));
    if (stream->capture != capture) {
        stream->capture = capture;
        capture->references++;
    }
    hm_capture_set_tail(stream, all, before + count);
    free(all);
}

static void
leave(struct hm_stream *stream)
{
    stream->capture->references--;
    stream->capture = NULL;
    free(stream->tail);
    stream->tail = NULL;
    stream->tail_count = 0;
}

static void
capture_end(struct hm_capture *capture)
{
    struct hm_capture **link = &captures;

    for (struct hm_stream *stream = capture->origin->ctx->streams; stream != NULL;
         stream = stream->next) {
        if (stream->capture == capture)
            leave(stream);
    }
    while (*link != capture)
        link = &(*link)->next;
    *link = capture->next;
    free(capture);
}

void
hm_capture_abandon(struct hm_stream *stream)
{
    struct hm_capture *capture = stream->capture;

    if (capture == NULL)
        return;
    if (capture->origin != stream) {
        hm_capture_invalidate(capture);
        leave(stream);
        return;
    }
    if (capture->own_graph)
        hm_graph_delete(capture->graph);
    capture_end(capture);
}

CUresult
hm_stream_add(struct hm_stream *stream, const struct hm_op *op, CUgraphNodeType type)
{
    CUresult result = hm_capture_check(stream);
    struct hm_node *node;

    if (result != CUDA_SUCCESS)
        return result;
    if (stream->capture == NULL) {
        hm_stream_submit(stream, op);
        return CUDA_SUCCESS;
    }
    node = hm_node_new(stream->capture->graph, type);
    node->op = *op;
    hm_capture_append(stream, node);
    return CUDA_SUCCESS;
}

static CUresult
begin(struct hm_stream *stream, CUstreamCaptureMode mode, struct hm_graph *graph)
{
    struct hm_capture *capture;

    if (mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    if (stream == hm_stream_legacy(stream->ctx))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture != NULL)
        return CUDA_ERROR_ILLEGAL_STATE;
    capture = hm_allocate(sizeof(*capture));
    *capture = (struct hm_capture){
        .id = ++last_id,
        .mode = mode,
        .thread = (unsigned long)pthread_self(),
        .graph = graph != NULL ? graph : hm_graph_new(),
        .own_graph = graph == NULL,
        .origin = stream,
        .next = captures,
    };
    captures = capture;
    hm_capture_join(stream, capture, NULL, 0);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    return result != CUDA_SUCCESS ? result : begin(stream, mode, NULL);
}

HM_EXPORT CUresult
cuStreamBeginCapture(CUstream handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    return result != CUDA_SUCCESS ? result : begin(stream, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL);
}

HM_EXPORT CUresult
cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph_handle, const CUgraphNode *dependencies,
                            const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode)
{
    HM_ENTER(HM_CURRENT);
    struct hm_graph *graph = HM_HANDLE(HM_GRAPH, graph_handle);
    struct hm_stream *stream;
    CUresult result = hm_stream_find(&call, handle, &stream);

    (void)edges;
    if (result != CUDA_SUCCESS)
        return result;
    if (graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    result = begin(stream, mode, graph);
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++) {
        struct hm_node *node = HM_HANDLE(HM_NODE, dependencies[i]);

        if (node != NULL)
            hm_capture_join(stream, stream->capture, &node, 1);
    }
    return result;
}

/* Every node some other one depends on, or the origin's tail: else a fork was never joined. */
static bool
joined(const struct hm_capture *capture)
{
    for (const struct hm_stream *stream = capture->origin->ctx->streams; stream != NULL;
         stream = stream->next) {
        if (stream->capture != capture || stream == capture->origin)
            continue;
        for (size_t i = 0; i < stream->tail_count; i++) {
            bool reached = false;

            for (size_t j = 0; j < capture->origin->tail_count && !reached; j++)
                reached = hm_node_depends(capture->origin->tail[j], stream->tail[i]);
            if (!reached)
                return false;
        }
    }
    return true;
}

static CUresult
end_status(const struct hm_stream *stream)
{
    const struct hm_capture *capture = stream->capture;

    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
        capture->thread != (unsigned long)pthread_self())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    if (capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    return joined(capture) ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
}

HM_EXPORT CUresult
cuStreamEndCapture(CUstream handle, CUgraph *graph)
{
    HM_ENTER(HM_CURRENT);
    struct hm_stream *stream;
    struct hm_capture *capture;
    CUresult result = hm_stream_find(&call, handle, &stream);

    if (result != CUDA_SUCCESS)
        return result;
    capture = stream->capture;
    if (graph == NULL || capture == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (capture->origin != stream)
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    result = end_status(stream);
    if (result == CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
        return result;
    *graph = result == CUDA_SUCCESS ? capture->graph->handle : NULL;
    if (result != CUDA_SUCCESS && capture->own_graph)
        hm_graph_delete(capture->graph);
    capture_end(capture);
    return result;
}

HM_EXPORT CUresult
cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    HM_ENTER(HM_INITIALIZED);
    CUstreamCaptureMode before = thread_mode;

    if (mode == NULL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}
