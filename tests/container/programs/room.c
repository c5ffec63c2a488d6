/* How big the GPU is, by every library that can say it, and whether an allocation ends where that says; and whose libc. */
#include <cuda.h>
#include <nvml.h>

#include <gnu/libc-version.h>
#include <stdio.h>

#define MIB ((size_t)1 << 20)

int
main(void)
{
    CUcontext context;
    CUdeviceptr memory;
    CUdevice device;
    nvmlDevice_t handle;
    nvmlMemory_t card;
    size_t free_bytes, total_bytes;

    if (cuInit(0) != CUDA_SUCCESS || cuDeviceGet(&device, 0) != CUDA_SUCCESS ||
        cuDevicePrimaryCtxRetain(&context, device) != CUDA_SUCCESS ||
        cuCtxSetCurrent(context) != CUDA_SUCCESS ||
        cuMemGetInfo(&free_bytes, &total_bytes) != CUDA_SUCCESS || nvmlInit() != NVML_SUCCESS ||
        nvmlDeviceGetHandleByIndex(0, &handle) != NVML_SUCCESS ||
        nvmlDeviceGetMemoryInfo(handle, &card) != NVML_SUCCESS)
        return 1;
    printf("glibc %s\ncuda %zu\nnvml %llu\n", gnu_get_libc_version(), total_bytes / MIB,
           card.total / MIB);
    printf("within %d\n", cuMemAlloc(&memory, 4096 * MIB));
    printf("beyond %d\n", cuMemAlloc(&memory, 4096 * MIB));
    return 0;
}
