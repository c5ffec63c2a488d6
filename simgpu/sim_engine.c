#include "sim_engine.h"

#include <string.h>

/* Fitted to two and four saturating tenants (0.449, 0.224 each) and to one that waits for each of
 * its 500 us kernels beside one that does not (0.17 : 0.70). */
#define SLICE_NS 2000000
#define PREEMPT_NS 227000
#define HANDOVER_NS 50000

static int64_t
min_ns(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t
pending(const struct hm_engine *engine, int channel)
{
    return channel < 0 || engine->channels[channel].used == 0
               ? 0
               : engine->channels[channel].queued_ns - engine->channels[channel].served_ns;
}

void
hm_engine_reset(struct hm_engine *engine, int64_t now_ns)
{
    for (int i = 0; i < HM_CHANNELS; i++)
        engine->channels[i].used = 0;
    engine->now_ns = now_ns;
    engine->owner = -1;
    engine->slice_left_ns = 0;
    engine->switch_left_ns = 0;
    engine->window_start_ns = now_ns;
    engine->window_busy_ns = 0;
    engine->utilization_percent = 0;
}

void
hm_engine_repair(struct hm_engine *engine)
{
    for (int i = 0; i < HM_CHANNELS; i++) {
        if (engine->channels[i].served_ns > engine->channels[i].queued_ns)
            engine->channels[i].served_ns = engine->channels[i].queued_ns;
    }
}

int
hm_engine_open(struct hm_engine *engine, int slot)
{
    for (int i = 0; i < HM_CHANNELS; i++) {
        struct hm_channel *channel = &engine->channels[i];

        if (channel->used != 0)
            continue;
        memset(channel, 0, offsetof(struct hm_channel, segments));
        channel->slot = slot;
        channel->used = 1;
        return i;
    }
    return -1;
}

void
hm_engine_close(struct hm_engine *engine, int channel)
{
    engine->channels[channel].used = 0;
}

void
hm_engine_drop_slot(struct hm_engine *engine, int slot)
{
    for (int i = 0; i < HM_CHANNELS; i++) {
        if (engine->channels[i].used != 0 && engine->channels[i].slot == slot)
            engine->channels[i].used = 0;
    }
}

static void
window_end(struct hm_engine *engine)
{
    engine->utilization_percent =
        (uint32_t)((engine->window_busy_ns * 100 + HM_ENGINE_WINDOW_NS / 2) / HM_ENGINE_WINDOW_NS);
    engine->window_busy_ns = 0;
    engine->window_start_ns += HM_ENGINE_WINDOW_NS;
    for (int i = 0; i < HM_CHANNELS; i++) {
        engine->channels[i].last_window_ns = engine->channels[i].window_ns;
        engine->channels[i].window_ns = 0;
    }
}

/* Nothing to do until `until_ns`: windows that pass meanwhile are empty. */
static void
idle(struct hm_engine *engine, int64_t until_ns)
{
    engine->now_ns = until_ns;
    for (int i = 0; i < 2 && until_ns - engine->window_start_ns >= HM_ENGINE_WINDOW_NS; i++)
        window_end(engine);
    engine->window_start_ns +=
        (until_ns - engine->window_start_ns) / HM_ENGINE_WINDOW_NS * HM_ENGINE_WINDOW_NS;
}

static void
record_segment(struct hm_channel *channel, int64_t start_ns, int64_t length_ns)
{
    struct hm_segment *last = &channel->segments[(channel->segment_count - 1) % HM_SEGMENTS];

    if (channel->segment_count > 0 && last->start_ns + last->length_ns == start_ns) {
        last->length_ns += length_ns;
        return;
    }
    channel->segments[channel->segment_count++ % HM_SEGMENTS] = (struct hm_segment){
        .start_ns = start_ns,
        .position = channel->served_ns,
        .length_ns = length_ns,
    };
}

static void
serve(struct hm_engine *engine, int64_t length_ns)
{
    struct hm_channel *channel = &engine->channels[engine->owner];

    record_segment(channel, engine->now_ns, length_ns);
    channel->served_ns += length_ns;
    channel->window_ns += length_ns;
    engine->slice_left_ns -= length_ns;
    engine->busy_ns += length_ns;
    engine->window_busy_ns += length_ns;
    engine->now_ns += length_ns;
}

/* The card changes hands, or its owner gets another slice; false when nobody has work. */
static bool
choose(struct hm_engine *engine)
{
    int owner = engine->owner;

    for (int step = 1; step <= HM_CHANNELS; step++) {
        int next = (owner + step + HM_CHANNELS) % HM_CHANNELS;

        if (pending(engine, next) == 0)
            continue;
        if (next != owner && owner >= 0)
            engine->switch_left_ns = pending(engine, owner) > 0 ? PREEMPT_NS : HANDOVER_NS;
        engine->owner = next;
        engine->slice_left_ns = SLICE_NS;
        return true;
    }
    return false;
}

void
hm_engine_advance(struct hm_engine *engine, int64_t now_ns)
{
    while (engine->now_ns < now_ns) {
        int64_t until = min_ns(now_ns, engine->window_start_ns + HM_ENGINE_WINDOW_NS);

        if (engine->now_ns >= engine->window_start_ns + HM_ENGINE_WINDOW_NS) {
            window_end(engine);
        } else if (engine->switch_left_ns > 0) {
            int64_t spent = min_ns(engine->switch_left_ns, until - engine->now_ns);

            engine->switch_left_ns -= spent;
            engine->now_ns += spent;
        } else if (pending(engine, engine->owner) > 0 && engine->slice_left_ns > 0) {
            serve(engine, min_ns(min_ns(pending(engine, engine->owner), engine->slice_left_ns),
                                 until - engine->now_ns));
        } else if (!choose(engine)) {
            idle(engine, now_ns);
        }
    }
}

int64_t
hm_engine_submit(struct hm_engine *engine, int channel, int64_t length_ns)
{
    engine->channels[channel].queued_ns += length_ns;
    return engine->channels[channel].queued_ns;
}

bool
hm_engine_done(const struct hm_engine *engine, int channel, int64_t position)
{
    return engine->channels[channel].served_ns >= position;
}

int64_t
hm_engine_when(const struct hm_engine *engine, int channel, int64_t position)
{
    const struct hm_channel *queue = &engine->channels[channel];
    uint64_t oldest = queue->segment_count > HM_SEGMENTS ? queue->segment_count - HM_SEGMENTS : 0;

    for (uint64_t i = queue->segment_count; i > oldest; i--) {
        const struct hm_segment *segment = &queue->segments[(i - 1) % HM_SEGMENTS];

        if (segment->position < position || i - 1 == oldest)
            return segment->start_ns +
                   (position > segment->position ? position - segment->position : 0);
    }
    return engine->now_ns;
}

int64_t
hm_engine_earliest(const struct hm_engine *engine, int channel, int64_t position)
{
    int64_t left = position - engine->channels[channel].served_ns;
    int64_t turn = engine->switch_left_ns;

    if (channel != engine->owner)
        turn += min_ns(pending(engine, engine->owner), engine->slice_left_ns);
    return engine->now_ns + turn + left;
}
