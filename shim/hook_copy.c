/* Copies of so many bytes: gated if they stay on the card. */
#include "copy.h"

HM_HOOK CUresult
cuMemcpyDtoD(CUdeviceptr_v1 dstDevice, CUdeviceptr_v1 srcDevice, unsigned int ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyDtoD(dstDevice, srcDevice, ByteCount));
}

HM_HOOK CUresult
cuMemcpyDtoD_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyDtoD_v2(dstDevice, srcDevice, ByteCount));
}

HM_HOOK CUresult
cuMemcpyDtoD_v2_ptds(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, true,
                 cuMemcpyDtoD_v2_ptds(dstDevice, srcDevice, ByteCount));
}

HM_HOOK CUresult
cuMemcpyDtoDAsync(CUdeviceptr_v1 dstDevice, CUdeviceptr_v1 srcDevice, unsigned int ByteCount,
                  CUstream hStream)
{
    return GATED(hm_work_bytes(ByteCount), hStream, false,
                 cuMemcpyDtoDAsync(dstDevice, srcDevice, ByteCount, hStream));
}

HM_HOOK CUresult
cuMemcpyDtoDAsync_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount,
                     CUstream hStream)
{
    return GATED(hm_work_bytes(ByteCount), hStream, false,
                 cuMemcpyDtoDAsync_v2(dstDevice, srcDevice, ByteCount, hStream));
}

HM_HOOK CUresult
cuMemcpyDtoDAsync_v2_ptsz(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount,
                          CUstream hStream)
{
    return GATED(hm_work_bytes(ByteCount), hStream, true,
                 cuMemcpyDtoDAsync_v2_ptsz(dstDevice, srcDevice, ByteCount, hStream));
}

HM_HOOK CUresult
cuMemcpyDtoA(CUarray dstArray, unsigned int dstOffset, CUdeviceptr_v1 srcDevice,
             unsigned int ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyDtoA(dstArray, dstOffset, srcDevice, ByteCount));
}

HM_HOOK CUresult
cuMemcpyDtoA_v2(CUarray dstArray, size_t dstOffset, CUdeviceptr srcDevice, size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyDtoA_v2(dstArray, dstOffset, srcDevice, ByteCount));
}

HM_HOOK CUresult
cuMemcpyDtoA_v2_ptds(CUarray dstArray, size_t dstOffset, CUdeviceptr srcDevice, size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, true,
                 cuMemcpyDtoA_v2_ptds(dstArray, dstOffset, srcDevice, ByteCount));
}

HM_HOOK CUresult
cuMemcpyAtoD(CUdeviceptr_v1 dstDevice, CUarray srcArray, unsigned int srcOffset,
             unsigned int ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyAtoD(dstDevice, srcArray, srcOffset, ByteCount));
}

HM_HOOK CUresult
cuMemcpyAtoD_v2(CUdeviceptr dstDevice, CUarray srcArray, size_t srcOffset, size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyAtoD_v2(dstDevice, srcArray, srcOffset, ByteCount));
}

HM_HOOK CUresult
cuMemcpyAtoD_v2_ptds(CUdeviceptr dstDevice, CUarray srcArray, size_t srcOffset, size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, true,
                 cuMemcpyAtoD_v2_ptds(dstDevice, srcArray, srcOffset, ByteCount));
}

HM_HOOK CUresult
cuMemcpyAtoA(CUarray dstArray, unsigned int dstOffset, CUarray srcArray, unsigned int srcOffset,
             unsigned int ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyAtoA(dstArray, dstOffset, srcArray, srcOffset, ByteCount));
}

HM_HOOK CUresult
cuMemcpyAtoA_v2(CUarray dstArray, size_t dstOffset, CUarray srcArray, size_t srcOffset,
                size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, false,
                 cuMemcpyAtoA_v2(dstArray, dstOffset, srcArray, srcOffset, ByteCount));
}

HM_HOOK CUresult
cuMemcpyAtoA_v2_ptds(CUarray dstArray, size_t dstOffset, CUarray srcArray, size_t srcOffset,
                     size_t ByteCount)
{
    return GATED(hm_work_bytes(ByteCount), NULL, true,
                 cuMemcpyAtoA_v2_ptds(dstArray, dstOffset, srcArray, srcOffset, ByteCount));
}

HM_HOOK CUresult
cuMemcpyHtoD(CUdeviceptr_v1 dstDevice, const void *srcHost, unsigned int ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoD(dstDevice, srcHost, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyHtoD_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoD_v2(dstDevice, srcHost, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyHtoD_v2_ptds(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoD_v2_ptds(dstDevice, srcHost, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyHtoDAsync(CUdeviceptr_v1 dstDevice, const void *srcHost, unsigned int ByteCount,
                  CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoDAsync(dstDevice, srcHost, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyHtoDAsync_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoDAsync_v2(dstDevice, srcHost, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyHtoDAsync_v2_ptsz(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount,
                          CUstream hStream)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyHtoDAsync_v2_ptsz(dstDevice, srcHost, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyDtoH(void *dstHost, CUdeviceptr_v1 srcDevice, unsigned int ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyDtoH(dstHost, srcDevice, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyDtoH_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyDtoH_v2(dstHost, srcDevice, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyDtoH_v2_ptds(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyDtoH_v2_ptds(dstHost, srcDevice, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyDtoHAsync(void *dstHost, CUdeviceptr_v1 srcDevice, unsigned int ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyDtoHAsync(dstHost, srcDevice, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyDtoHAsync_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyDtoHAsync_v2(dstHost, srcDevice, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyDtoHAsync_v2_ptsz(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyDtoHAsync_v2_ptsz(dstHost, srcDevice, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyHtoA(CUarray dstArray, unsigned int dstOffset, const void *srcHost, unsigned int ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoA(dstArray, dstOffset, srcHost, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyHtoA_v2(CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoA_v2(dstArray, dstOffset, srcHost, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyHtoA_v2_ptds(CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyHtoA_v2_ptds(dstArray, dstOffset, srcHost, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyHtoAAsync(CUarray dstArray, unsigned int dstOffset, const void *srcHost,
                  unsigned int ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyHtoAAsync(dstArray, dstOffset, srcHost, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyHtoAAsync_v2(CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount,
                     CUstream hStream)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyHtoAAsync_v2(dstArray, dstOffset, srcHost, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyHtoAAsync_v2_ptsz(CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount,
                          CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyHtoAAsync_v2_ptsz(dstArray, dstOffset, srcHost,
                                                               ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyAtoH(void *dstHost, CUarray srcArray, unsigned int srcOffset, unsigned int ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyAtoH(dstHost, srcArray, srcOffset, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyAtoH_v2(void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyAtoH_v2(dstHost, srcArray, srcOffset, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyAtoH_v2_ptds(void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyAtoH_v2_ptds(dstHost, srcArray, srcOffset, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyAtoHAsync(void *dstHost, CUarray srcArray, unsigned int srcOffset, unsigned int ByteCount,
                  CUstream hStream)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyAtoHAsync(dstHost, srcArray, srcOffset, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyAtoHAsync_v2(void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount,
                     CUstream hStream)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyAtoHAsync_v2(dstHost, srcArray, srcOffset, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyAtoHAsync_v2_ptsz(void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount,
                          CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyAtoHAsync_v2_ptsz(dstHost, srcArray, srcOffset,
                                                               ByteCount, hStream)));
}

/*
 * Which way an untyped copy goes, only the driver knows, from its addresses. To hold back one that goes over the bus would
 * delay it for nothing, and we don't look up two addresses for every copy.
 */
HM_HOOK CUresult
cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpy(dst, src, ByteCount)));
}

HM_HOOK CUresult
cuMemcpy_ptds(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpy_ptds(dst, src, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyAsync(dst, src, ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyAsync_ptsz(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyAsync_ptsz(dst, src, ByteCount, hStream)));
}

/* Between cards: held back on one of them it would hold back the other. */
HM_HOOK CUresult
cuMemcpyPeer(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice,
             CUcontext srcContext, size_t ByteCount)
{
    return hm_copied(ByteCount,
                     REAL(cuMemcpyPeer(dstDevice, dstContext, srcDevice, srcContext, ByteCount)));
}

HM_HOOK CUresult
cuMemcpyPeer_ptds(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice,
                  CUcontext srcContext, size_t ByteCount)
{
    return hm_copied(ByteCount, REAL(cuMemcpyPeer_ptds(dstDevice, dstContext, srcDevice, srcContext,
                                                       ByteCount)));
}

HM_HOOK CUresult
cuMemcpyPeerAsync(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice,
                  CUcontext srcContext, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyPeerAsync(dstDevice, dstContext, srcDevice, srcContext,
                                                       ByteCount, hStream)));
}

HM_HOOK CUresult
cuMemcpyPeerAsync_ptsz(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice,
                       CUcontext srcContext, size_t ByteCount, CUstream hStream)
{
    return hm_copied(ByteCount, REAL(cuMemcpyPeerAsync_ptsz(dstDevice, dstContext, srcDevice,
                                                            srcContext, ByteCount, hStream)));
}
