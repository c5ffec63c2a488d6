/* Events: a name for the last record made of them. */
#pragma once

#include "cuda_stream.h"

struct hm_event {
    CUevent handle;
    struct hm_context *ctx;
    unsigned int flags;
    struct hm_record *record; /* NULL: never recorded */
    uint64_t capture_id;      /* of the capture it was last recorded in; 0: none */
    struct hm_node **nodes;
    size_t node_count;
};

/* Records the event at the end of a stream that does not capture. */
void hm_event_mark(struct hm_event *event, struct hm_stream *stream);
/* Lets the stream wait for the event's last record. */
void hm_event_wait_on(const struct hm_event *event, struct hm_stream *stream);
