/* Stream capture, and which calls it forbids. */
#pragma once

#include "cuda_graph.h"
#include "cuda_stream.h"

struct hm_capture {
    uint64_t id;
    int references; /* streams in it */
    bool invalid;
    CUstreamCaptureMode mode;
    unsigned long thread; /* that began it */
    struct hm_graph *graph;
    bool own_graph; /* made for it, not given */
    struct hm_stream *origin;
    struct hm_capture *next;
};

/* What every submission to a stream asks first. An error when the capture is broken, or when the
 * legacy stream is used while a blocking stream captures. */
CUresult hm_capture_check(struct hm_stream *stream);
/* For calls that may synchronize unseen: an error when a capture forbids them to this thread. */
CUresult hm_capture_unsafe(void);
/* For calls that can't be captured at all, such as queries of the stream. */
CUresult hm_capture_refuse(struct hm_stream *stream);
/* The same for calls about a whole context. */
CUresult hm_capture_refuse_context(struct hm_context *ctx);
void hm_capture_invalidate(struct hm_capture *capture);

/* Puts a node behind what the stream captured so far. */
void hm_capture_append(struct hm_stream *stream, struct hm_node *node);
/* Lets `stream` join the capture, after those nodes. */
void hm_capture_join(struct hm_stream *stream, struct hm_capture *capture,
                     struct hm_node *const *nodes, size_t count);
/* Replaces the nodes the next operation depends on. */
void hm_capture_set_tail(struct hm_stream *stream, struct hm_node *const *nodes, size_t count);
void hm_capture_abandon(struct hm_stream *stream);
struct hm_capture *hm_capture_by_id(uint64_t id);

/* Submits, or adds a node when the stream captures. The usual end of an entry point. */
CUresult hm_stream_add(struct hm_stream *stream, const struct hm_op *op, CUgraphNodeType type);
