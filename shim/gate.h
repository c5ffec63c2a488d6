/*
 * The gate in front of everything that keeps the card busy. A launch enters, is held back while it is not this tenant's
 * turn or while enough of its work is in flight, and leaves; what is in between is the real call.
 *
 *     return GATED(hm_work_kernel(f, x, y, z), hStream, false, cuLaunchKernel(f, x, y, z, ...));
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
void hm_gate_enter(struct hm_pass *pass, hm_work work, CUstream stream);
/* The short way: true if the launch may go on right now, unmetered. */
bool hm_gate_is_free(struct hm_pass *pass, CUstream stream);
/* The real call returned. */
void hm_gate_leave(struct hm_pass *pass, CUresult result);

/* A kernel on so many blocks. HM_COLLECTIVE is set for those that collective.h knows. */
hm_work hm_work_kernel(const void *function, unsigned int x, unsigned int y, unsigned int z);
/* A memset or a copy within the card. */
hm_work hm_work_bytes(uint64_t bytes);
/* A graph. */
hm_work hm_work_graph(CUgraphExec exec);

/* Bytes that go over the bus: counted, never held back. */
void hm_gate_bus(uint64_t bytes);

#define GATED(work, stream, per_thread, call)                     \
    ({                                                            \
        CUstream hm_stream = hm_stream_named(stream, per_thread); \
        struct hm_pass hm_pass;                                   \
        CUresult hm_launched;                                     \
        if (!hm_gate_is_free(&hm_pass, hm_stream))                \
            hm_gate_enter(&hm_pass, work, hm_stream);             \
        hm_launched = REAL(call);                                 \
        hm_gate_leave(&hm_pass, hm_launched);                     \
        hm_launched;                                              \
    })

/* A stream is about to go: what waits for its work is dropped, and nothing of ours touches it any more. */
void hm_gate_stream_goes(CUstream stream);
/* Around a call that may end a context: nothing of ours touches it meanwhile, nor, if it is gone, afterwards. */
void hm_gate_context_goes(void);
void hm_gate_context_gone(CUcontext context, bool gone);

void hm_gate_after_fork_child(void);
