#include "cuda_stream.h"

#include <stdlib.h>

#include "sim_clock.h"

struct hm_record *
hm_record_new(void)
{
    struct hm_record *record = hm_allocate(sizeof(*record));

    record->references = 1;
    return record;
}

void
hm_record_hold(struct hm_record *record)
{
    record->references++;
}

void
hm_record_drop(struct hm_record *record)
{
    if (record != NULL && --record->references == 0)
        free(record);
}

static void
unlink_record(struct hm_context *ctx, struct hm_record *record)
{
    if (record->previous != NULL)
        record->previous->next = record->next;
    else
        ctx->unresolved = record->next;
    if (record->next != NULL)
        record->next->previous = record->previous;
    else
        ctx->unresolved_last = record->previous;
    record->next = NULL;
    record->previous = NULL;
}

/* Positions arrive nearly in order: looked for from the end. */
static void
link_record(struct hm_context *ctx, struct hm_record *record)
{
    struct hm_record *before = ctx->unresolved_last;

    while (before != NULL && before->position > record->position)
        before = before->previous;
    record->previous = before;
    record->next = before != NULL ? before->next : ctx->unresolved;
    if (before != NULL)
        before->next = record;
    else
        ctx->unresolved = record;
    if (record->next != NULL)
        record->next->previous = record;
    else
        ctx->unresolved_last = record;
}

static void
resolve(struct hm_context *ctx, const struct hm_engine *engine)
{
    while (ctx->unresolved != NULL &&
           hm_engine_done(engine, ctx->channel, ctx->unresolved->position)) {
        struct hm_record *record = ctx->unresolved;

        record->time_ns = hm_engine_when(engine, ctx->channel, record->position);
        record->done = true;
        unlink_record(ctx, record);
        hm_record_drop(record);
    }
}

static struct hm_engine *
engine_of(const struct hm_context *ctx)
{
    return &hm_driver.state->card[ctx->card].engine;
}

int64_t
hm_context_work(struct hm_context *ctx, int64_t length_ns)
{
    int64_t position;

    hm_context_settle(ctx);
    hm_state_lock();
    position = hm_engine_submit(engine_of(ctx), ctx->channel, length_ns);
    hm_state_unlock();
    return position;
}

void
hm_records_abandon(struct hm_context *ctx)
{
    while (ctx->unresolved != NULL) {
        struct hm_record *record = ctx->unresolved;

        record->time_ns = hm_clock_ns();
        record->done = true;
        unlink_record(ctx, record);
        hm_record_drop(record);
    }
}

void
hm_context_settle(struct hm_context *ctx)
{
    hm_state_lock();
    hm_process_reap_every(20000000);
    hm_engine_advance(engine_of(ctx), hm_clock_ns());
    resolve(ctx, engine_of(ctx));
    hm_state_unlock();
}

bool
hm_context_reached(struct hm_context *ctx, int64_t position)
{
    hm_context_settle(ctx);
    return hm_engine_done(engine_of(ctx), ctx->channel, position);
}

int64_t
hm_context_earliest(struct hm_context *ctx, int64_t position)
{
    int64_t earliest;

    hm_state_lock();
    earliest = hm_engine_earliest(engine_of(ctx), ctx->channel, position);
    hm_state_unlock();
    return earliest;
}

void
hm_record_issue(struct hm_record *record, struct hm_context *ctx, int64_t position)
{
    record->issued = true;
    record->ctx = ctx;
    record->position = position;
    if (hm_context_reached(ctx, position)) {
        record->time_ns = hm_clock_ns();
        record->done = true;
        return;
    }
    hm_record_hold(record);
    link_record(ctx, record);
}

bool
hm_record_done(struct hm_record *record)
{
    if (!record->done && record->issued)
        hm_context_settle(record->ctx);
    return record->done;
}

void
hm_record_wait(struct hm_record *record)
{
    hm_record_hold(record);
    while (hm_streams_pump(false), !hm_record_done(record)) {
        if (record->issued)
            hm_driver_wait(hm_context_earliest(record->ctx, record->position));
        else
            hm_queue_wait();
    }
    hm_record_drop(record);
}
