/* Graphs: what they allocate, and the gate in front of their launches. */
#include "graphmem.h"
#include "quick.h"

HM_HOOK CUresult
cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode,
                   char *logBuffer, size_t bufferSize)
{
    struct hm_graph_exec *exec = hm_graph_measure(hGraph);

    return hm_graph_made(
        exec, phGraphExec,
        REAL(cuGraphInstantiate(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize)));
}

HM_HOOK CUresult
cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode,
                      char *logBuffer, size_t bufferSize)
{
    struct hm_graph_exec *exec = hm_graph_measure(hGraph);

    return hm_graph_made(
        exec, phGraphExec,
        REAL(cuGraphInstantiate_v2(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize)));
}

HM_HOOK CUresult
cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags)
{
    struct hm_graph_exec *exec = hm_graph_measure(hGraph);

    return hm_graph_made(exec, phGraphExec,
                         REAL(cuGraphInstantiateWithFlags(phGraphExec, hGraph, flags)));
}

/* With a flag an instantiation uploads, which takes the memory. */
static bool
begin_upload(struct hm_graph_flight *flight, struct hm_graph_exec *exec,
             const CUDA_GRAPH_INSTANTIATE_PARAMS *params, bool per_thread)
{
    if (exec == NULL || params == NULL || !(params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD))
        return hm_graph_begin(flight, NULL, 0);
    return hm_graph_begin(flight, exec, hm_graph_stream(params->hUploadStream, per_thread));
}

HM_HOOK CUresult
cuGraphInstantiateWithParams(CUgraphExec *phGraphExec, CUgraph hGraph,
                             CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams)
{
    struct hm_graph_exec *exec = hm_graph_measure(hGraph);
    struct hm_graph_flight flight;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

    if (begin_upload(&flight, exec, instantiateParams, false))
        result = hm_graph_end(
            &flight, REAL(cuGraphInstantiateWithParams(phGraphExec, hGraph, instantiateParams)));
    return hm_graph_made(exec, phGraphExec, result);
}

HM_HOOK CUresult
cuGraphInstantiateWithParams_ptsz(CUgraphExec *phGraphExec, CUgraph hGraph,
                                  CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams)
{
    struct hm_graph_exec *exec = hm_graph_measure(hGraph);
    struct hm_graph_flight flight;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

    if (begin_upload(&flight, exec, instantiateParams, true))
        result = hm_graph_end(&flight, REAL(cuGraphInstantiateWithParams_ptsz(phGraphExec, hGraph,
                                                                              instantiateParams)));
    return hm_graph_made(exec, phGraphExec, result);
}

HM_HOOK CUresult
cuGraphExecDestroy(CUgraphExec hGraphExec)
{
    struct hm_graph_exec *exec = hm_graph_any() ? hm_graph_take(hGraphExec) : NULL;

    return hm_graph_destroyed(exec, hGraphExec, REAL(cuGraphExecDestroy(hGraphExec)));
}

HM_HOOK CUresult
cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream)
{
    struct hm_graph_flight flight;

    if (!hm_graph_any())
        return GATED(hm_work_graph(hGraphExec), hStream, false, cuGraphLaunch(hGraphExec, hStream));
    if (!hm_graph_begin(&flight, hm_graph_find(hGraphExec), hm_graph_stream(hStream, false)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_graph_end(&flight, GATED(hm_work_graph(hGraphExec), hStream, false,
                                       cuGraphLaunch(hGraphExec, hStream)));
}

HM_HOOK CUresult
cuGraphLaunch_ptsz(CUgraphExec hGraphExec, CUstream hStream)
{
    struct hm_graph_flight flight;

    if (!hm_graph_any())
        return GATED(hm_work_graph(hGraphExec), hStream, true,
                     cuGraphLaunch_ptsz(hGraphExec, hStream));
    if (!hm_graph_begin(&flight, hm_graph_find(hGraphExec), hm_graph_stream(hStream, true)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_graph_end(&flight, GATED(hm_work_graph(hGraphExec), hStream, true,
                                       cuGraphLaunch_ptsz(hGraphExec, hStream)));
}

HM_HOOK CUresult
cuGraphUpload(CUgraphExec hGraphExec, CUstream hStream)
{
    struct hm_graph_flight flight;

    if (!hm_graph_any())
        return REAL(cuGraphUpload(hGraphExec, hStream));
    if (!hm_graph_begin(&flight, hm_graph_find(hGraphExec), hm_graph_stream(hStream, false)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_graph_end(&flight, REAL(cuGraphUpload(hGraphExec, hStream)));
}

HM_HOOK CUresult
cuGraphUpload_ptsz(CUgraphExec hGraphExec, CUstream hStream)
{
    struct hm_graph_flight flight;

    if (!hm_graph_any())
        return REAL(cuGraphUpload_ptsz(hGraphExec, hStream));
    if (!hm_graph_begin(&flight, hm_graph_find(hGraphExec), hm_graph_stream(hStream, true)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_graph_end(&flight, REAL(cuGraphUpload_ptsz(hGraphExec, hStream)));
}

HM_HOOK CUresult
cuDeviceGraphMemTrim(CUdevice device)
{
    CUresult result = REAL(cuDeviceGraphMemTrim(device));
    int index = hm_active() ? hm_device_index(device) : -1;

    if (index >= 0)
        hm_graph_trimmed(index);
    return result;
}
