/*
 * The compute engine of one card: who runs when. This is the seam for anything about GPU time.
 *
 * A channel is one context's queue. Work is submitted as a length in nanoseconds and is served in
 * order; a position is a count of nanoseconds of that queue. One channel has the card at a time, for
 * slices of 2 ms while others have work too, and a change of hands costs time, so that N saturating
 * channels get 0.449 * 2 / N each, as on an H100 under driver 580.
 *
 * Nothing runs between calls: hm_engine_advance() plays everything up to a moment in one go, the
 * same whoever calls it. All functions are called with the state locked.
 */
#pragma once

#include "sim_common.h"

enum { HM_CHANNELS = 64, HM_SEGMENTS = 1024 };

/* Over this long utilization is counted, about as NVML does. */
#define HM_ENGINE_WINDOW_NS 166000000

/* An uninterrupted stretch of service: position `position` was reached `start_ns`, then one by one. */
struct hm_segment {
    int64_t start_ns;
    int64_t position;
    int64_t length_ns;
};

struct hm_channel {
    int32_t used;
    int32_t slot; /* owning process */
    int64_t queued_ns;
    int64_t served_ns;
    int64_t window_ns;      /* served in the current utilization window */
    int64_t last_window_ns; /* and in the one before it */
    uint64_t segment_count; /* ever; the last HM_SEGMENTS are kept */
    struct hm_segment segments[HM_SEGMENTS];
};

struct hm_engine {
    int64_t now_ns;
    int32_t owner; /* the channel on the card, also when it has run dry; -1: none yet */
    int64_t slice_left_ns;
    int64_t switch_left_ns;
    int64_t busy_ns; /* ever */
    int64_t window_start_ns;
    int64_t window_busy_ns;
    uint32_t utilization_percent; /* of the last complete window */
    struct hm_channel channels[HM_CHANNELS];
};

void hm_engine_reset(struct hm_engine *engine, int64_t now_ns);
void hm_engine_repair(struct hm_engine *engine);
void hm_engine_drop_slot(struct hm_engine *engine, int slot);

/* A new channel, or -1 when the card has too many. */
int hm_engine_open(struct hm_engine *engine, int slot);
void hm_engine_close(struct hm_engine *engine, int channel);

void hm_engine_advance(struct hm_engine *engine, int64_t now_ns);
/* Appends work; returns the position at which it will be done. */
int64_t hm_engine_submit(struct hm_engine *engine, int channel, int64_t length_ns);
bool hm_engine_done(const struct hm_engine *engine, int channel, int64_t position);
/* When a position that is done was reached. */
int64_t hm_engine_when(const struct hm_engine *engine, int channel, int64_t position);
/* A moment before which the position can't be reached. */
int64_t hm_engine_earliest(const struct hm_engine *engine, int channel, int64_t position);
