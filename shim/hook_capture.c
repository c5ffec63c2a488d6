/* Stream capture: the streams that capture, so that programs and moments without a capture pay nothing for it. */
#include "capture.h"

#include <pthread.h>

#define KNOWN 32

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
int hm_captures;
static uintptr_t known
    [KNOWN]; /* under the mutex: the streams of the first captures; one that finds no room here stays
                                  counted for ever */
static int known_count;

static CUresult
ask(CUstream stream, bool per_thread, CUstreamCaptureStatus *status)
{
    return per_thread ? REAL(cuStreamIsCapturing_ptsz(stream, status))
                      : REAL(cuStreamIsCapturing(stream, status));
}

bool
hm_capture_runs(CUstream stream, bool per_thread)
{
    CUstreamCaptureStatus status;

    if (HM_LIKELY(hm_capture_count() == 0))
        return false;
    if (stream == CU_STREAM_LEGACY || (stream == NULL && !per_thread))
        return false; /* it can't */
    return ask(stream, per_thread, &status) == CUDA_SUCCESS &&
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void
hm_capture_lock(void)
{
    pthread_mutex_lock(&mutex);
}

void
hm_capture_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

/* The mutex is held. */
static void
count(int more)
{
    __atomic_store_n(&hm_captures, hm_captures + more, __ATOMIC_RELAXED);
}

/* Threads have a stream each under the same handle. */
static uintptr_t
name_of(CUstream stream, bool per_thread)
{
    bool own = stream == CU_STREAM_PER_THREAD || (stream == NULL && per_thread);

    return own ? (uintptr_t)&hm_depth : (uintptr_t)stream;
}

/* Before the driver is asked, or somebody could do what breaks the capture that has just begun. */
static void
begins(void)
{
    hm_capture_lock();
    count(1);
    hm_capture_unlock();
}

static CUresult
begun(CUstream stream, bool per_thread, CUresult result)
{
    hm_capture_lock();
    if (result != CUDA_SUCCESS)
        count(-1);
    else if (known_count < KNOWN)
        known[known_count++] = name_of(stream, per_thread);
    hm_capture_unlock();
    return result;
}

/* One capture of the stream is over. False: none is known. */
static bool
forget(uintptr_t name)
{
    bool found = false;

    hm_capture_lock();
    for (int i = 0; !found && i < known_count; i++) {
        if (known[i] != name)
            continue;
        known[i] = known[--known_count];
        count(-1);
        found = true;
    }
    hm_capture_unlock();
    return found;
}

/* A capture that can't be ended here, by this thread or at this stream, goes on; a broken one is over all the same. */
static CUresult
ended(CUstream stream, bool per_thread, CUresult result)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;

    if (result == CUDA_SUCCESS || (ask(stream, per_thread, &status) == CUDA_SUCCESS &&
                                   status == CU_STREAM_CAPTURE_STATUS_NONE))
        forget(name_of(stream, per_thread));
    return result;
}

void
hm_capture_stream_goes(CUstream stream)
{
    while (hm_capture_count() > 0 && forget((uintptr_t)stream))
        ;
}

void
hm_capture_after_fork_child(void)
{
    hm_captures = known_count = 0;
    pthread_mutex_init(&mutex, NULL);
}

HM_HOOK CUresult
cuStreamBeginCapture(CUstream hStream)
{
    begins();
    return begun(hStream, false, REAL(cuStreamBeginCapture(hStream)));
}

HM_HOOK CUresult
cuStreamBeginCapture_ptsz(CUstream hStream)
{
    begins();
    return begun(hStream, true, REAL(cuStreamBeginCapture_ptsz(hStream)));
}

HM_HOOK CUresult
cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode)
{
    begins();
    return begun(hStream, false, REAL(cuStreamBeginCapture_v2(hStream, mode)));
}

HM_HOOK CUresult
cuStreamBeginCapture_v2_ptsz(CUstream hStream, CUstreamCaptureMode mode)
{
    begins();
    return begun(hStream, true, REAL(cuStreamBeginCapture_v2_ptsz(hStream, mode)));
}

HM_HOOK CUresult
cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                            const CUgraphEdgeData *dependencyData, size_t numDependencies,
                            CUstreamCaptureMode mode)
{
    begins();
    return begun(hStream, false,
                 REAL(cuStreamBeginCaptureToGraph(hStream, hGraph, dependencies, dependencyData,
                                                  numDependencies, mode)));
}

HM_HOOK CUresult
cuStreamBeginCaptureToGraph_ptsz(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                                 const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                 CUstreamCaptureMode mode)
{
    begins();
    return begun(hStream, true,
                 REAL(cuStreamBeginCaptureToGraph_ptsz(hStream, hGraph, dependencies,
                                                       dependencyData, numDependencies, mode)));
}

HM_HOOK CUresult
cuStreamEndCapture(CUstream hStream, CUgraph *phGraph)
{
    return ended(hStream, false, REAL(cuStreamEndCapture(hStream, phGraph)));
}

HM_HOOK CUresult
cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *phGraph)
{
    return ended(hStream, true, REAL(cuStreamEndCapture_ptsz(hStream, phGraph)));
}
