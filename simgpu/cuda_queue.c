#include "cuda_stream.h"

#include <stdlib.h>

#include "cuda_capture.h"
#include "cuda_graph.h"
#include "cuda_pool.h"
#include "sim_clock.h"

#define LOOK_AGAIN_NS 50000

static struct hm_stream *waiting; /* streams with a queue */

bool
hm_streams_queued(void)
{
    return waiting != NULL;
}

static void
waiting_add(struct hm_stream *stream)
{
    stream->next_waiting = waiting;
    waiting = stream;
    hm_helper_wake();
}

static void
waiting_remove(struct hm_stream *stream)
{
    struct hm_stream **link = &waiting;

    while (*link != stream)
        link = &(*link)->next_waiting;
    *link = stream->next_waiting;
}

static void
append(struct hm_stream *stream, const struct hm_op *op)
{
    struct hm_op *copy = hm_allocate(sizeof(*copy));

    *copy = *op;
    copy->next = NULL;
    if (stream->first == NULL) {
        stream->first = copy;
        waiting_add(stream);
    } else {
        stream->last->next = copy;
    }
    stream->last = copy;
}

static void
pop(struct hm_stream *stream)
{
    struct hm_op *op = stream->first;

    stream->first = op->next;
    if (stream->first == NULL)
        waiting_remove(stream);
    free(op);
}

static bool
issue_wait(struct hm_stream *stream, struct hm_record *record)
{
    if (!hm_record_done(record)) {
        /* One channel serves in order: what is issued later is also done later. */
        if (!record->issued || record->ctx != stream->ctx)
            return false;
        if (record->position > stream->position)
            stream->position = record->position;
    }
    hm_record_drop(record);
    return true;
}

static bool
value_reached(const struct hm_op *op)
{
    uint64_t mask = op->value.wide ? UINT64_MAX : UINT32_MAX;
    uint64_t now = op->value.wide ? *(volatile uint64_t *)op->value.address
                                  : *(volatile uint32_t *)op->value.address;
    uint64_t value = op->value.value & mask;

    switch (op->value.flags & 3) {
    case CU_STREAM_WAIT_VALUE_EQ:
        return now == value;
    case CU_STREAM_WAIT_VALUE_AND:
        return (now & value) != 0;
    case CU_STREAM_WAIT_VALUE_NOR:
        return (~(now | value) & mask) != 0;
    default:
        return op->value.wide ? (int64_t)(now - value) >= 0
                              : (int32_t)((uint32_t)now - (uint32_t)value) >= 0;
    }
}

static void
write_value(const struct hm_op *op)
{
    if (op->value.wide)
        *(volatile uint64_t *)op->value.address = op->value.value;
    else
        *(volatile uint32_t *)op->value.address = (uint32_t)op->value.value;
}

static void
issue_work(struct hm_stream *stream, const struct hm_op *op)
{
    if (op->length_ns > 0)
        stream->position = hm_context_work(stream->ctx, op->length_ns);
    hm_effect_run(op, stream->ctx);
}

/* False when the operation must wait. Host functions always do: the helper calls them. */
static bool
issue(struct hm_stream *stream, const struct hm_op *op)
{
    switch (op->kind) {
    case HM_OP_RECORD:
        hm_record_issue(op->record, stream->ctx, stream->position);
        hm_record_drop(op->record);
        return true;
    case HM_OP_WAIT:
        return issue_wait(stream, op->record);
    case HM_OP_HOST:
    case HM_OP_MEET:
        return false;
    case HM_OP_WAIT_VALUE:
        return hm_context_reached(stream->ctx, stream->position) && value_reached(op);
    case HM_OP_WRITE_VALUE:
        if (!hm_context_reached(stream->ctx, stream->position))
            return false;
        write_value(op);
        return true;
    case HM_OP_FREE:
        hm_pool_free(op->address);
        return true;
    case HM_OP_GRAPH_ALLOC:
        hm_graph_memory_use(op->memory);
        return true;
    case HM_OP_GRAPH_FREE:
        hm_graph_memory_unuse(op->memory);
        return true;
    default:
        issue_work(stream, op);
        return true;
    }
}

static bool
run_host_function(struct hm_stream *stream)
{
    struct hm_op *op = stream->first;

    if (!hm_context_reached(stream->ctx, stream->position))
        return false;
    stream->host_running = true;
    hm_driver_unlock();
    op->host.function(op->host.data);
    hm_driver_lock();
    stream->host_running = false;
    pop(stream);
    return true;
}

/* A collective begins when its stream is there, and is over when as many as it is for have begun. */
static bool
meet(struct hm_stream *stream)
{
    struct hm_op *op = stream->first;
    uint64_t *count = (uint64_t *)op->meet.address;

    if (op->meet.target == 0) {
        if (!hm_context_reached(stream->ctx, stream->position))
            return false;
        op->meet.target =
            (__atomic_fetch_add(count, 1, __ATOMIC_ACQ_REL) / op->meet.ranks + 1) * op->meet.ranks;
    }
    if (__atomic_load_n(count, __ATOMIC_ACQUIRE) < op->meet.target)
        return false;
    stream->position = hm_context_work(stream->ctx, op->length_ns);
    pop(stream);
    return true;
}

/* Issues the head of a queue. */
static bool
advance(struct hm_stream *stream, bool run_host)
{
    if (stream->host_running)
        return false;
    if (stream->first->kind == HM_OP_HOST && run_host)
        return run_host_function(stream);
    if (stream->first->kind == HM_OP_MEET)
        return meet(stream);
    if (!issue(stream, stream->first))
        return false;
    pop(stream);
    return true;
}

bool
hm_streams_pump(bool run_host)
{
    struct hm_stream *stream = waiting;
    bool any = false;

    while (stream != NULL) {
        if (!advance(stream, run_host)) {
            stream = stream->next_waiting;
            continue;
        }
        any = true;
        if (stream->first == NULL && stream->destroyed)
            hm_stream_retire(stream);
        /* The list may be another one by now. */
        stream = waiting;
    }
    return any;
}

/* What is queued on `before` comes before what will be submitted to `stream`. */
static void
fence(struct hm_stream *stream, struct hm_stream *before)
{
    struct hm_op mark = {.kind = HM_OP_RECORD, .record = hm_record_new()};
    struct hm_op wait = {.kind = HM_OP_WAIT, .record = mark.record};

    hm_record_hold(mark.record);
    append(before, &mark);
    append(stream, &wait);
}

/* What is submitted to `stream` next comes after all that `before` was given. */
static void
follow(struct hm_stream *stream, struct hm_stream *before)
{
    if (before->first != NULL)
        fence(stream, before);
    else if (before->position > stream->position)
        stream->position = before->position;
}

/* The legacy stream and the blocking streams of a context wait for each other. */
static void
fence_legacy(struct hm_stream *stream)
{
    struct hm_stream *legacy = hm_stream_legacy(stream->ctx);

    if ((stream->flags & CU_STREAM_NON_BLOCKING) != 0)
        return;
    if (stream != legacy) {
        follow(stream, legacy);
        return;
    }
    for (struct hm_stream *other = stream->ctx->streams; other != NULL; other = other->next) {
        if (other != legacy && (other->flags & CU_STREAM_NON_BLOCKING) == 0)
            follow(legacy, other);
    }
}

void
hm_streams_join(struct hm_stream *stream)
{
    for (struct hm_stream *other = stream->ctx->streams; other != NULL; other = other->next) {
        if (other != stream && other->first != NULL)
            fence(stream, other);
    }
    stream->position = hm_context_work(stream->ctx, 0); /* also of streams that are gone */
}

void
hm_stream_submit(struct hm_stream *stream, const struct hm_op *op)
{
    hm_streams_pump(false);
    fence_legacy(stream);
    if (stream->first != NULL || stream->host_running || !issue(stream, op))
        append(stream, op);
}

void
hm_queue_wait(void)
{
    int64_t earliest = INT64_MAX;

    /* Virtual time moves only because somebody waits: to where the first queue can go on. */
    for (struct hm_stream *stream = waiting; hm_clock_virtual() && stream != NULL;
         stream = stream->next_waiting) {
        if (!hm_context_reached(stream->ctx, stream->position)) {
            int64_t moment = hm_context_earliest(stream->ctx, stream->position);

            earliest = moment < earliest ? moment : earliest;
        }
    }
    if (earliest < INT64_MAX)
        hm_clock_wait(earliest);
    hm_driver_unlock();
    hm_clock_pause(LOOK_AGAIN_NS);
    hm_driver_lock();
}

/* What an operation would have left behind had it run. */
static void
abandon(const struct hm_op *op)
{
    switch (op->kind) {
    case HM_OP_RECORD:
        op->record->issued = true;
        op->record->done = true;
        op->record->time_ns = hm_clock_ns();
        hm_record_drop(op->record);
        break;
    case HM_OP_WAIT:
        hm_record_drop(op->record);
        break;
    case HM_OP_FREE:
        hm_pool_free(op->address);
        break;
    case HM_OP_GRAPH_FREE:
        hm_graph_memory_unuse(op->memory);
        break;
    default:
        break;
    }
}

void
hm_streams_abandon(struct hm_context *ctx)
{
    while (ctx->streams != NULL) {
        struct hm_stream *stream = ctx->streams;

        if (stream->host_running) {
            hm_queue_wait();
            continue;
        }
        while (stream->first != NULL) {
            abandon(stream->first);
            pop(stream);
        }
        hm_capture_abandon(stream);
        hm_stream_retire(stream);
    }
    hm_records_abandon(ctx);
}
