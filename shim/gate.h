/*
 * The gate in front of everything that keeps the card busy. A launch enters, is held back while it is not this tenant's
 * turn or while enough of its work is in flight, and leaves; what is in between is the real call.
 *
 *     return GATED(hm_work_kernel(f, x, y, z), hStream, false, cuLaunchKernel(f, x, y, z, ...));
 */
#pragma once
#include "capture.h"
#include "tenant.h"

/* What is launched, as far as one can tell how long it will take: the same word, about the same GPU time. */
typedef uint64_t hm_work;

/* One launch on its way, in its hook's frame. */
struct hm_pass {
    struct hm_line *line; /* NULL: nothing to settle */
    hm_work work;
    CUstream stream;
    bool per_thread;
};

/* Wait until this launch may go on. Holds no lock when it returns, and never waits inside a stream capture. */
void hm_gate_enter(struct hm_pass *pass, hm_work work, CUstream stream, bool per_thread);
/* The real call returned. */
void hm_gate_leave(struct hm_pass *pass, CUresult result);

/* A kernel on so many blocks. */
hm_work hm_work_kernel(const void *function, unsigned int x, unsigned int y, unsigned int z);
/* A memset or a copy within the card. */
hm_work hm_work_bytes(uint64_t bytes);
/* A graph. */
hm_work hm_work_graph(CUgraphExec exec);

/* Bytes that go over the bus: counted, never held back. */
void hm_gate_bus(uint64_t bytes);

/* Kernels of this launch wait for those of other processes or devices: all of them have to run at the same time. */
void hm_gate_collective(void);

#define GATED(work, stream, per_thread, call)                      \
    ({                                                             \
        struct hm_pass hm_pass;                                    \
        CUresult hm_launched;                                      \
        hm_gate_enter(&hm_pass, work, stream, per_thread);         \
        hm_launched = REAL(call);                                  \
        hm_gate_leave(&hm_pass, hm_launched);                      \
        hm_launched;                                               \
    })

/* A stream or a context is about to go: what waits for its work is dropped, and nothing of ours touches it any more. */
void hm_gate_stream_goes(CUstream stream);
void hm_gate_context_goes(CUcontext context);

void hm_gate_after_fork_child(void);
