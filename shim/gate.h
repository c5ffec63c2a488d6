/*
 * The gate in front of everything that keeps the card busy. A launch enters, is held back while it is not this tenant's
 * turn or while enough of its work is in flight, and leaves; what is in between is the real call.
 * Hooks say GATED, of quick.h.
 */
#pragma once
#include "capture.h"
#include "tenant.h"

/* What is launched, as far as one can tell how long it will take: the same word, about the same GPU time. Never 0. */
typedef uint64_t hm_work;
#define HM_COLLECTIVE \
    UINT64_C(2) /* the bit of those that wait on the card for work of other processes or devices */

/* One launch on its way, in its hook's frame. */
struct hm_pass {
    struct hm_line *line; /* NULL: nothing to settle */
    hm_work work;
    uint64_t cost_ns; /* predicted */
    uint16_t kind;    /* its place in hm_costs; HM_NO_KIND */
    bool known;       /* this work was seen before */
    bool windowed;
};

/* A stream by a name that says the same to every thread, but for CU_STREAM_PER_THREAD, which is the caller's own. */
static inline CUstream
hm_stream_named(CUstream stream, bool per_thread)
{
    return stream != NULL ? stream : per_thread ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
}

/* Wait until this launch may go on. Holds no lock when it returns, and never waits inside a stream capture. */
__attribute__((cold)) void hm_gate_enter(struct hm_pass *pass, hm_work work, CUstream stream);
/* The real call returned this, and so does leave. */
__attribute__((cold)) CUresult hm_gate_leave(const struct hm_pass *pass, CUresult result);

/* Bytes that go over the bus: counted, never held back. */
void hm_gate_bus(uint64_t bytes);

/* A stream is about to go: what waits for its work is dropped, and nothing of ours touches it any more. */
void hm_gate_stream_goes(CUstream stream);
/* Around a call that may end a context: nothing of ours touches it meanwhile, nor, if it is gone, afterwards. */
void hm_gate_context_goes(void);
void hm_gate_context_gone(CUcontext context, bool gone);

void hm_gate_after_fork_child(void);
