/*
 * What a program sees at the limit of its memory, in terms that hold for any limit: each path
 * refuses a request of twice the card with CUDA_ERROR_OUT_OF_MEMORY, and goes on afterwards.
 */
#include "driver.h"

#include "kernels.h"

static void
report(const char *path, CUresult code)
{
    printf("RESULT refused %s=%s\n", path, hm_error(code));
}

int
main(void)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemGenericAllocationHandle handle;
    size_t free_bytes, total_bytes, twice, pitch;
    struct hm_kernels kernels;
    CUstream stream;
    CUdevice device;
    CUdeviceptr ptr;

    hm_start(&device);
    hm_kernels_load(&kernels);
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuMemGetInfo(&free_bytes, &total_bytes));
    twice = total_bytes / (2 << 20) * (4 << 20);
    prop.location.id = device;

    report("malloc", cu.cuMemAlloc(&ptr, twice));
    report("pitch", cu.cuMemAllocPitch(&ptr, &pitch, 65536, twice / 65536, 4));
    report("async", cu.cuMemAllocAsync(&ptr, twice, stream));
    report("vmm", cu.cuMemCreate(&handle, twice, &prop, 0));
    CHECK(cu.cuMemAlloc(&ptr, 4096));
    CHECK(hm_launch_words(kernels.fill, stream, ptr, 5, 1024));
    CHECK(cu.cuStreamSynchronize(stream));
    printf("RESULT refused goes on hash=%016llx\n", (unsigned long long)hm_device_hash(ptr, 1024));
    CHECK(cu.cuMemFree(ptr));
    return 0;
}
