/* Memsets. */
#include "quick.h"

HM_HOOK CUresult
cuMemsetD8(CUdeviceptr_v1 dstDevice, unsigned char uc, unsigned int N)
{
    return GATED(hm_work_bytes(N), NULL, false, cuMemsetD8(dstDevice, uc, N));
}

HM_HOOK CUresult
cuMemsetD8_v2(CUdeviceptr dstDevice, unsigned char uc, size_t N)
{
    return GATED(hm_work_bytes(N), NULL, false, cuMemsetD8_v2(dstDevice, uc, N));
}

HM_HOOK CUresult
cuMemsetD8_v2_ptds(CUdeviceptr dstDevice, unsigned char uc, size_t N)
{
    return GATED(hm_work_bytes(N), NULL, true, cuMemsetD8_v2_ptds(dstDevice, uc, N));
}

HM_HOOK CUresult
cuMemsetD8Async(CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream)
{
    return GATED(hm_work_bytes(N), hStream, false, cuMemsetD8Async(dstDevice, uc, N, hStream));
}

HM_HOOK CUresult
cuMemsetD8Async_ptsz(CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream)
{
    return GATED(hm_work_bytes(N), hStream, true, cuMemsetD8Async_ptsz(dstDevice, uc, N, hStream));
}

HM_HOOK CUresult
cuMemsetD16(CUdeviceptr_v1 dstDevice, unsigned short us, unsigned int N)
{
    return GATED(hm_work_bytes((uint64_t)N * 2), NULL, false, cuMemsetD16(dstDevice, us, N));
}

HM_HOOK CUresult
cuMemsetD16_v2(CUdeviceptr dstDevice, unsigned short us, size_t N)
{
    return GATED(hm_work_bytes((uint64_t)N * 2), NULL, false, cuMemsetD16_v2(dstDevice, us, N));
}

HM_HOOK CUresult
cuMemsetD16_v2_ptds(CUdeviceptr dstDevice, unsigned short us, size_t N)
{
    return GATED(hm_work_bytes((uint64_t)N * 2), NULL, true, cuMemsetD16_v2_ptds(dstDevice, us, N));
}

HM_HOOK CUresult
cuMemsetD16Async(CUdeviceptr dstDevice, unsigned short us, size_t N, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)N * 2), hStream, false,
                 cuMemsetD16Async(dstDevice, us, N, hStream));
}

HM_HOOK CUresult
cuMemsetD16Async_ptsz(CUdeviceptr dstDevice, unsigned short us, size_t N, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)N * 2), hStream, true,
                 cuMemsetD16Async_ptsz(dstDevice, us, N, hStream));
}

HM_HOOK CUresult
cuMemsetD32(CUdeviceptr_v1 dstDevice, unsigned int ui, unsigned int N)
{
    return GATED(hm_work_bytes((uint64_t)N * 4), NULL, false, cuMemsetD32(dstDevice, ui, N));
}

HM_HOOK CUresult
cuMemsetD32_v2(CUdeviceptr dstDevice, unsigned int ui, size_t N)
{
    return GATED(hm_work_bytes((uint64_t)N * 4), NULL, false, cuMemsetD32_v2(dstDevice, ui, N));
}

HM_HOOK CUresult
cuMemsetD32_v2_ptds(CUdeviceptr dstDevice, unsigned int ui, size_t N)
{
    return GATED(hm_work_bytes((uint64_t)N * 4), NULL, true, cuMemsetD32_v2_ptds(dstDevice, ui, N));
}

HM_HOOK CUresult
cuMemsetD32Async(CUdeviceptr dstDevice, unsigned int ui, size_t N, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)N * 4), hStream, false,
                 cuMemsetD32Async(dstDevice, ui, N, hStream));
}

HM_HOOK CUresult
cuMemsetD32Async_ptsz(CUdeviceptr dstDevice, unsigned int ui, size_t N, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)N * 4), hStream, true,
                 cuMemsetD32Async_ptsz(dstDevice, ui, N, hStream));
}

HM_HOOK CUresult
cuMemsetD2D8(CUdeviceptr_v1 dstDevice, unsigned int dstPitch, unsigned char uc, unsigned int Width,
             unsigned int Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height), NULL, false,
                 cuMemsetD2D8(dstDevice, dstPitch, uc, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D8_v2(CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width,
                size_t Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height), NULL, false,
                 cuMemsetD2D8_v2(dstDevice, dstPitch, uc, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D8_v2_ptds(CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width,
                     size_t Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height), NULL, true,
                 cuMemsetD2D8_v2_ptds(dstDevice, dstPitch, uc, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D8Async(CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width,
                  size_t Height, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height), hStream, false,
                 cuMemsetD2D8Async(dstDevice, dstPitch, uc, Width, Height, hStream));
}

HM_HOOK CUresult
cuMemsetD2D8Async_ptsz(CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width,
                       size_t Height, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height), hStream, true,
                 cuMemsetD2D8Async_ptsz(dstDevice, dstPitch, uc, Width, Height, hStream));
}

HM_HOOK CUresult
cuMemsetD2D16(CUdeviceptr_v1 dstDevice, unsigned int dstPitch, unsigned short us,
              unsigned int Width, unsigned int Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 2), NULL, false,
                 cuMemsetD2D16(dstDevice, dstPitch, us, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D16_v2(CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width,
                 size_t Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 2), NULL, false,
                 cuMemsetD2D16_v2(dstDevice, dstPitch, us, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D16_v2_ptds(CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width,
                      size_t Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 2), NULL, true,
                 cuMemsetD2D16_v2_ptds(dstDevice, dstPitch, us, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D16Async(CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width,
                   size_t Height, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 2), hStream, false,
                 cuMemsetD2D16Async(dstDevice, dstPitch, us, Width, Height, hStream));
}

HM_HOOK CUresult
cuMemsetD2D16Async_ptsz(CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width,
                        size_t Height, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 2), hStream, true,
                 cuMemsetD2D16Async_ptsz(dstDevice, dstPitch, us, Width, Height, hStream));
}

HM_HOOK CUresult
cuMemsetD2D32(CUdeviceptr_v1 dstDevice, unsigned int dstPitch, unsigned int ui, unsigned int Width,
              unsigned int Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 4), NULL, false,
                 cuMemsetD2D32(dstDevice, dstPitch, ui, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D32_v2(CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width,
                 size_t Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 4), NULL, false,
                 cuMemsetD2D32_v2(dstDevice, dstPitch, ui, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D32_v2_ptds(CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width,
                      size_t Height)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 4), NULL, true,
                 cuMemsetD2D32_v2_ptds(dstDevice, dstPitch, ui, Width, Height));
}

HM_HOOK CUresult
cuMemsetD2D32Async(CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width,
                   size_t Height, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 4), hStream, false,
                 cuMemsetD2D32Async(dstDevice, dstPitch, ui, Width, Height, hStream));
}

HM_HOOK CUresult
cuMemsetD2D32Async_ptsz(CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width,
                        size_t Height, CUstream hStream)
{
    return GATED(hm_work_bytes((uint64_t)Width * Height * 4), hStream, true,
                 cuMemsetD2D32Async_ptsz(dstDevice, dstPitch, ui, Width, Height, hStream));
}
