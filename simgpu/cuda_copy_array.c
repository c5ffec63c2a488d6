#include "cuda_capture.h"
#include "cuda_copy.h"

/* Copies that name a byte of an array's first row. */

static CUDA_MEMCPY3D_PEER
bytes_of(size_t count)
{
    return (CUDA_MEMCPY3D_PEER){.WidthInBytes = count, .Height = 1, .Depth = 1};
}

static void
from_array(CUDA_MEMCPY3D_PEER *copy, CUarray array, size_t offset)
{
    copy->srcMemoryType = CU_MEMORYTYPE_ARRAY;
    copy->srcArray = array;
    copy->srcXInBytes = offset;
}

static void
to_array(CUDA_MEMCPY3D_PEER *copy, CUarray array, size_t offset)
{
    copy->dstMemoryType = CU_MEMORYTYPE_ARRAY;
    copy->dstArray = array;
    copy->dstXInBytes = offset;
}

static void
from_host(CUDA_MEMCPY3D_PEER *copy, const void *host)
{
    copy->srcMemoryType = CU_MEMORYTYPE_HOST;
    copy->srcHost = host;
}

static void
to_host(CUDA_MEMCPY3D_PEER *copy, void *host)
{
    copy->dstMemoryType = CU_MEMORYTYPE_HOST;
    copy->dstHost = host;
}

HM_EXPORT CUresult
cuMemcpyAtoD_v2(CUdeviceptr to, CUarray from, size_t offset, size_t count)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    from_array(&copy, from, offset);
    copy.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.dstDevice = to;
    return hm_copy_add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyDtoA_v2(CUarray to, size_t offset, CUdeviceptr from, size_t count)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    to_array(&copy, to, offset);
    copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = from;
    return hm_copy_add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset, size_t count)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    from_array(&copy, from, from_offset);
    to_array(&copy, to, to_offset);
    return hm_copy_add(&call, NULL, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyHtoA_v2(CUarray to, size_t offset, const void *from, size_t count)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    from_host(&copy, from);
    to_array(&copy, to, offset);
    return hm_copy_add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyHtoAAsync_v2(CUarray to, size_t offset, const void *from, size_t count, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    from_host(&copy, from);
    to_array(&copy, to, offset);
    return hm_copy_add(&call, stream, &copy, false);
}

HM_EXPORT CUresult
cuMemcpyAtoH_v2(void *to, CUarray from, size_t offset, size_t count)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    from_array(&copy, from, offset);
    to_host(&copy, to);
    return hm_copy_add(&call, NULL, &copy, true);
}

HM_EXPORT CUresult
cuMemcpyAtoHAsync_v2(void *to, CUarray from, size_t offset, size_t count, CUstream stream)
{
    HM_ENTER(HM_CURRENT);
    CUDA_MEMCPY3D_PEER copy = bytes_of(count);

    from_array(&copy, from, offset);
    to_host(&copy, to);
    return hm_copy_add(&call, stream, &copy, false);
}
