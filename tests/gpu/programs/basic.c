/*
 * Allocations of several sizes, kernels, copies, memset and pitch: prints hashes of what was read
 * back.
 */
#include "driver.h"

#include "kernels.h"

static void
linear(const struct hm_kernels *kernels, CUstream stream, size_t words)
{
    CUdeviceptr one, two;

    CHECK(cu.cuMemAlloc(&one, words * 4));
    CHECK(cu.cuMemAlloc(&two, words * 4));
    CHECK(hm_launch_words(kernels->fill, stream, one, 0x01020304u + (uint32_t)words, words));
    CHECK(cu.cuStreamSynchronize(stream));
    CHECK(cu.cuMemcpyDtoD(two, one, words * 4));
    CHECK(cu.cuMemsetD32(two, 7, words / 2));
    printf("RESULT basic words=%zu one=%016llx two=%016llx\n", words,
           (unsigned long long)hm_device_hash(one, words),
           (unsigned long long)hm_device_hash(two, words));
    CHECK(cu.cuMemFree(one));
    CHECK(cu.cuMemFree(two));
}

static void
pitched(void)
{
    enum { WIDTH = 100, HEIGHT = 33 };
    static uint32_t rows[HEIGHT][WIDTH], back[HEIGHT][WIDTH];
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = rows,
                          .srcPitch = sizeof rows[0],
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .WidthInBytes = sizeof rows[0],
                          .Height = HEIGHT};
    CUdeviceptr ptr;
    size_t pitch;

    for (unsigned y = 0; y < HEIGHT; y++) {
        for (unsigned x = 0; x < WIDTH; x++)
            rows[y][x] = y * 1000 + x;
    }
    CHECK(cu.cuMemAllocPitch(&ptr, &pitch, sizeof rows[0], HEIGHT, 4));
    copy.dstDevice = ptr;
    copy.dstPitch = pitch;
    CHECK(cu.cuMemcpy2D(&copy));
    copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = ptr;
    copy.srcPitch = pitch;
    copy.dstMemoryType = CU_MEMORYTYPE_HOST;
    copy.dstHost = back;
    copy.dstPitch = sizeof back[0];
    CHECK(cu.cuMemcpy2D(&copy));
    printf("RESULT basic pitch=%zu hash=%016llx\n", pitch,
           (unsigned long long)hm_hash(back, sizeof back));
    CHECK(cu.cuMemFree(ptr));
}

int
main(void)
{
    static const size_t words[] = {1, 1000, 262144, 4194304};
    struct hm_kernels kernels;
    CUstream stream;
    CUdevice device;
    char name[96];

    hm_start(&device);
    CHECK(cu.cuDeviceGetName(name, sizeof name, device));
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_DEFAULT));
    hm_kernels_load(&kernels);
    printf("RESULT basic device=%s\n", name);
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
        linear(&kernels, stream, words[i]);
    pitched();
    CHECK(cu.cuModuleUnload(kernels.module));
    CHECK(cu.cuStreamDestroy(stream));
    CHECK(cu.cuDevicePrimaryCtxRelease(device));
    return 0;
}
