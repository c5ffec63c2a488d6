/* Stream capture: remembered is only that a capture was ever begun, so that other programs pay nothing for it. */
#include "capture.h"

static bool begun; /* set before the first capture begins and never cleared */

static void
note(void)
{
    __atomic_store_n(&begun, true,
                     __ATOMIC_RELAXED); /* who allocates in a capture was told of it */
}

bool
hm_capture_runs(CUstream stream, bool per_thread)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;

    if (HM_LIKELY(!__atomic_load_n(&begun, __ATOMIC_RELAXED)))
        return false;
    if (per_thread)
        REAL(cuStreamIsCapturing_ptsz(stream, &status));
    else
        REAL(cuStreamIsCapturing(stream, &status));
    return status != CU_STREAM_CAPTURE_STATUS_NONE;
}

HM_HOOK CUresult
cuStreamBeginCapture(CUstream hStream)
{
    note();
    return REAL(cuStreamBeginCapture(hStream));
}

HM_HOOK CUresult
cuStreamBeginCapture_ptsz(CUstream hStream)
{
    note();
    return REAL(cuStreamBeginCapture_ptsz(hStream));
}

HM_HOOK CUresult
cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode)
{
    note();
    return REAL(cuStreamBeginCapture_v2(hStream, mode));
}

HM_HOOK CUresult
cuStreamBeginCapture_v2_ptsz(CUstream hStream, CUstreamCaptureMode mode)
{
    note();
    return REAL(cuStreamBeginCapture_v2_ptsz(hStream, mode));
}

HM_HOOK CUresult
cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                            const CUgraphEdgeData *dependencyData, size_t numDependencies,
                            CUstreamCaptureMode mode)
{
    note();
    return REAL(cuStreamBeginCaptureToGraph(hStream, hGraph, dependencies, dependencyData,
                                            numDependencies, mode));
}

HM_HOOK CUresult
cuStreamBeginCaptureToGraph_ptsz(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                                 const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                 CUstreamCaptureMode mode)
{
    note();
    return REAL(cuStreamBeginCaptureToGraph_ptsz(hStream, hGraph, dependencies, dependencyData,
                                                 numDependencies, mode));
}
