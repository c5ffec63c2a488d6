/*
 * A libcuda.so.1 with one device, POOL_UUID, and one pool, which holds reserved what its user says: the simulated driver
 * never shows a figure that falls before the memory is free.
 */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT cuuint64_t pool_reserved; /* what the next question is answered with */

EXPORT cuuint64_t pool_grows; /* by how much at the next allocation */

/* Waiting for the stream HELD takes until the semaphore is posted. */
EXPORT sem_t pool_waits, pool_goes_on;
#define HELD ((CUstream)4096)

EXPORT CUresult
cuInit(unsigned int flags)
{
    (void)flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuDeviceGetCount(int *count)
{
    *count = 1;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuDeviceGet(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    const char *text = getenv("POOL_UUID") + strlen("GPU-");

    (void)device;
    for (size_t i = 0; i < sizeof(uuid->bytes); i++, text += 2) {
        char byte[3] = "";

        text += *text == '-';
        uuid->bytes[i] = (char)strtoul(memcpy(byte, text, 2), NULL, 16);
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuCtxGetDevice(CUdevice *device)
{
    *device = 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    (void)mode;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
    (void)device;
    *pool = (CUmemoryPool)&pool_reserved;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute which, void *value)
{
    (void)pool;
    *(cuuint64_t *)value = which == CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT ? pool_reserved : 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
    pool_reserved += pool_grows;
    pool_grows = 0;
    (void)bytes;
    (void)stream;
    *pointer = 4096;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuMemPoolDestroy(CUmemoryPool pool)
{
    (void)pool;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
    (void)pool;
    (void)keep;
    return CUDA_SUCCESS;
}

EXPORT CUresult
cuStreamSynchronize(CUstream stream)
{
    if (stream == HELD) {
        sem_post(&pool_waits);
        sem_wait(&pool_goes_on);
    }
    return CUDA_SUCCESS;
}
