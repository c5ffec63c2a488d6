#include "cuda_stream.h"

#include <pthread.h>
#include <stdlib.h>

#include "cuda_handle.h"

#define LEGACY ((CUstream)0x1)
#define PER_THREAD ((CUstream)0x2)

static uint64_t last_id;

struct hm_stream *
hm_stream_new(struct hm_context *ctx, CUstream handle, unsigned int flags, int priority)
{
    struct hm_stream *stream = hm_allocate(sizeof(*stream));

    stream->ctx = ctx;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = ++last_id;
    stream->next = ctx->streams;
    ctx->streams = stream;
    stream->handle = handle;
    if (handle == NULL)
        stream->handle = (CUstream)(uintptr_t)hm_handle_make(HM_STREAM, stream, ctx);
    return stream;
}

struct hm_stream *
hm_stream_legacy(struct hm_context *ctx)
{
    for (struct hm_stream *stream = ctx->streams; stream != NULL; stream = stream->next) {
        if (stream->handle == LEGACY)
            return stream;
    }
    return hm_stream_new(ctx, LEGACY, CU_STREAM_DEFAULT, 0);
}

static struct hm_stream *
thread_stream(struct hm_context *ctx)
{
    unsigned long thread = (unsigned long)pthread_self();
    struct hm_stream *stream;

    for (stream = ctx->streams; stream != NULL; stream = stream->next) {
        if (stream->thread == thread)
            return stream;
    }
    stream = hm_stream_new(ctx, PER_THREAD, CU_STREAM_DEFAULT, 0);
    stream->thread = thread;
    return stream;
}

CUresult
hm_stream_find(const struct hm_call *call, CUstream handle, struct hm_stream **stream)
{
    if (handle == NULL)
        handle = hm_call_per_thread(call) ? PER_THREAD : LEGACY;
    if (handle == LEGACY || handle == PER_THREAD) {
        struct hm_context *ctx = hm_context_current();

        if (ctx == NULL)
            return CUDA_ERROR_INVALID_CONTEXT;
        *stream = handle == LEGACY ? hm_stream_legacy(ctx) : thread_stream(ctx);
        return CUDA_SUCCESS;
    }
    *stream = HM_HANDLE(HM_STREAM, handle);
    return *stream != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

bool
hm_stream_idle(struct hm_stream *stream)
{
    hm_streams_pump(false);
    return stream->first == NULL && !stream->host_running &&
           hm_context_reached(stream->ctx, stream->position);
}

struct hm_record *
hm_stream_mark(struct hm_stream *stream)
{
    struct hm_record *record = hm_record_new();
    struct hm_op op = {.kind = HM_OP_RECORD, .record = record};

    hm_record_hold(record);
    hm_stream_submit(stream, &op);
    return record;
}

void
hm_stream_drain(struct hm_stream *stream)
{
    struct hm_record *end = hm_stream_mark(stream);

    hm_record_wait(end);
    hm_record_drop(end);
}

/* All marks are set before the first wait: the list of streams may change while waiting. */
void
hm_context_drain(struct hm_context *ctx)
{
    struct hm_record **ends;
    size_t count = 0;

    for (struct hm_stream *stream = ctx->streams; stream != NULL; stream = stream->next)
        count++;
    ends = hm_allocate((count + 1) * sizeof(*ends));
    count = 0;
    for (struct hm_stream *stream = ctx->streams; stream != NULL; stream = stream->next) {
        if (stream->capture == NULL)
            ends[count++] = hm_stream_mark(stream);
    }
    for (size_t i = 0; i < count; i++) {
        hm_record_wait(ends[i]);
        hm_record_drop(ends[i]);
    }
    free(ends);
}

static void
unlink_stream(struct hm_stream *stream)
{
    struct hm_stream **link = &stream->ctx->streams;

    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
}

void
hm_stream_retire(struct hm_stream *stream)
{
    if (!stream->destroyed)
        hm_handle_drop((uint64_t)(uintptr_t)stream->handle);
    stream->destroyed = true;
    if (stream->first != NULL || stream->host_running)
        return;
    unlink_stream(stream);
    free(stream);
}
