/*
 * Stream-ordered memory: the default pool, a pool of one's own with a threshold, trimming, reuse
 * across streams.
 */
#include "driver.h"

#include "kernels.h"

enum { WORDS = 1 << 20 };

static cuuint64_t
attribute(CUmemoryPool pool, CUmemPool_attribute which)
{
    cuuint64_t value = 0;

    CHECK(cu.cuMemPoolGetAttribute(pool, which, &value));
    return value;
}

static void
use(const char *name, CUmemoryPool pool, const struct hm_kernels *kernels, CUstream stream)
{
    CUdeviceptr ptrs[4];

    for (uint32_t i = 0; i < 4; i++) {
        CHECK(cu.cuMemAllocFromPoolAsync(&ptrs[i], WORDS * 4ull, pool, stream));
        CHECK(hm_launch_words(kernels->fill, stream, ptrs[i], 0x1000u + i, WORDS));
    }
    CHECK(cu.cuStreamSynchronize(stream));
    printf("RESULT pools %s used=%llu\n", name,
           (unsigned long long)attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
    for (uint32_t i = 0; i < 4; i++) {
        printf("RESULT pools %s block=%u hash=%016llx\n", name, i,
               (unsigned long long)hm_device_hash(ptrs[i], WORDS));
        CHECK(cu.cuMemFreeAsync(ptrs[i], stream));
    }
    CHECK(cu.cuStreamSynchronize(stream));
    CHECK(cu.cuMemPoolTrimTo(pool, 0));
    printf("RESULT pools %s after trim used=%llu reserved=%llu\n", name,
           (unsigned long long)attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT),
           (unsigned long long)attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
}

int
main(void)
{
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    cuuint64_t keep = 1ull << 40;
    struct hm_kernels kernels;
    CUmemoryPool usual, own;
    CUstream one, two;
    CUdevice device;
    CUdeviceptr ptr;

    hm_start(&device);
    hm_kernels_load(&kernels);
    CHECK(cu.cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuStreamCreate(&two, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuDeviceGetDefaultMemPool(&usual, device));
    props.location.id = device;
    CHECK(cu.cuMemPoolCreate(&own, &props));
    CHECK(cu.cuMemPoolSetAttribute(own, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));

    use("default", usual, &kernels, one);
    use("own", own, &kernels, one);
    use("own again", own, &kernels, two);
    CHECK(cu.cuMemAllocAsync(&ptr, WORDS * 4ull, one));
    CHECK(cu.cuMemsetD32Async(ptr, 9, WORDS, one));
    CHECK(cu.cuStreamSynchronize(one));
    printf("RESULT pools async hash=%016llx\n", (unsigned long long)hm_device_hash(ptr, WORDS));
    CHECK(cu.cuMemFreeAsync(ptr, one));
    CHECK(cu.cuStreamSynchronize(one));
    CHECK(cu.cuMemPoolDestroy(own));
    return 0;
}
