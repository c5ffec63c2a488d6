/*
 * Streams: what is submitted, in order.
 *
 * An operation is issued when everything it must wait for outside its own channel is over: its work
 * is appended to the context's channel in the engine and what it does to memory is done at once. An
 * operation that can't be issued yet, and all behind it, wait in the stream's queue; a helper thread
 * then looks after the queues (cuda_helper.c).
 */
#pragma once

#include "cuda_context.h"
#include "cuda_range.h"

struct hm_capture;
struct hm_graph_memory;

/* A point in a stream that events and waits refer to; it outlives both. */
struct hm_record {
    int references;
    bool issued;
    bool done;
    struct hm_context *ctx; /* valid while issued and not done */
    int64_t position;
    int64_t time_ns; /* of the clock, when done */
    struct hm_record *next;
    struct hm_record *previous;
};

enum hm_op_kind {
    HM_OP_WORK, /* time on the card and nothing else */
    HM_OP_FILL,
    HM_OP_COPY,
    HM_OP_SET,
    HM_OP_RECORD,
    HM_OP_WAIT,
    HM_OP_HOST,
    HM_OP_WAIT_VALUE,
    HM_OP_WRITE_VALUE,
    HM_OP_MEET,
    HM_OP_FREE,
    HM_OP_GRAPH_ALLOC,
    HM_OP_GRAPH_FREE,
};

struct hm_op {
    enum hm_op_kind kind;
    int64_t length_ns;
    struct hm_op *next;
    union {
        struct {
            uint64_t address;
            uint64_t count;
            unsigned char value;
        } fill;
        CUDA_MEMCPY3D_PEER copy;
        CUDA_MEMSET_NODE_PARAMS set;
        struct hm_record *record; /* one reference is the op's */
        struct {
            CUhostFn function;
            void *data;
        } host;
        struct {
            uint64_t address;
            uint64_t value;
            unsigned int flags;
            bool wide;
        } value;
        struct {
            uint64_t address; /* of the count of those that began */
            uint64_t ranks;
            uint64_t target; /* of the count; 0: it has not begun */
        } meet;
        uint64_t address; /* free */
        struct hm_graph_memory *memory;
    };
};

struct hm_stream {
    CUstream handle; /* 0x1 for the legacy stream, 0x2 for a thread's own */
    struct hm_context *ctx;
    struct hm_stream *next;
    uint64_t id;
    unsigned long thread; /* whose own stream it is; 0: a created one or the legacy one */
    unsigned int flags;
    int priority;
    bool destroyed;
    bool host_running;
    int64_t position; /* in the channel, of the last operation issued */
    struct hm_stream *next_waiting;
    struct hm_op *first;
    struct hm_op *last;
    CUstreamAttrValue attributes[16];
    struct hm_capture *capture;
    struct hm_node **tail; /* while capturing: what the next operation depends on */
    size_t tail_count;
};

/* The stream a handle names in this call, and its context. Handles 0, 1 and 2 are the current
 * context's. */
CUresult hm_stream_find(const struct hm_call *call, CUstream handle, struct hm_stream **stream);
struct hm_stream *hm_stream_legacy(struct hm_context *ctx);

/* Puts an operation at the end of a stream that is not capturing. The op is copied. */
void hm_stream_submit(struct hm_stream *stream, const struct hm_op *op);
/* What is submitted to the stream next comes after all that its context was given. */
void hm_streams_join(struct hm_stream *stream);
/* Issues what can be issued; `run_host`: host functions too (the helper only). True if any was. */
bool hm_streams_pump(bool run_host);
/* Whether any stream of this process has a queue. */
bool hm_streams_queued(void);

/* `handle` is NULL for a created stream. */
struct hm_stream *hm_stream_new(struct hm_context *ctx, CUstream handle, unsigned int flags,
                                int priority);
bool hm_stream_idle(struct hm_stream *stream);
/* Waits until what was submitted before the call is over. */
void hm_stream_drain(struct hm_stream *stream);
void hm_context_drain(struct hm_context *ctx);
/* When everything on the stream so far is over, its records and queue go with it. */
void hm_stream_retire(struct hm_stream *stream);
/* With operations queued and none to be issued now: lets time pass. */
void hm_queue_wait(void);
/* Ends all streams of a context that is being destroyed, whatever is queued. */
void hm_streams_abandon(struct hm_context *ctx);
/* Ends records that nothing will reach any more. */
void hm_records_abandon(struct hm_context *ctx);
/* A record at the stream's end; the caller owns one reference. */
struct hm_record *hm_stream_mark(struct hm_stream *stream);

struct hm_record *hm_record_new(void);
void hm_record_hold(struct hm_record *record);
void hm_record_drop(struct hm_record *record);
bool hm_record_done(struct hm_record *record);
void hm_record_wait(struct hm_record *record);

/* For the stream queues only: hands the record to its context to be resolved. */
void hm_record_issue(struct hm_record *record, struct hm_context *ctx, int64_t position);
/* Plays the context's card up to now and resolves its records. */
void hm_context_settle(struct hm_context *ctx);
/* Appends work to the context's channel; returns the position of its end. */
int64_t hm_context_work(struct hm_context *ctx, int64_t length_ns);
bool hm_context_reached(struct hm_context *ctx, int64_t position);
int64_t hm_context_earliest(struct hm_context *ctx, int64_t position);

/* Runs what an issued operation does to memory (cuda_effect.c). */
void hm_effect_run(const struct hm_op *op, struct hm_context *ctx);

/* Makes sure that the helper thread runs and looks at the queues. */
void hm_helper_wake(void);
