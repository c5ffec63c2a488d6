/* Arrays of one, two and three dimensions and mipmaps: written, read back, hashed. */
#include "driver.h"

#include <stdbool.h>

static uint32_t host[64 * 64 * 16], back[64 * 64 * 16];

static void
two_dimensions(void)
{
    CUDA_ARRAY_DESCRIPTOR shape = {
        .Width = 64, .Height = 64, .Format = CU_AD_FORMAT_UNSIGNED_INT32, .NumChannels = 1};
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = host,
                          .srcPitch = 256,
                          .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                          .WidthInBytes = 256,
                          .Height = 64};
    CUDA_MEMCPY2D fetch = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                           .dstMemoryType = CU_MEMORYTYPE_HOST,
                           .dstHost = back,
                           .dstPitch = 256,
                           .WidthInBytes = 256,
                           .Height = 64};
    CUarray array;

    CHECK(cu.cuArrayCreate(&array, &shape));
    copy.dstArray = array;
    fetch.srcArray = array;
    CHECK(cu.cuMemcpy2D(&copy));
    memset(back, 0, sizeof back);
    CHECK(cu.cuMemcpy2D(&fetch));
    printf("RESULT arrays 2d hash=%016llx\n", (unsigned long long)hm_hash(back, 64 * 64 * 4));
    CHECK(cu.cuArrayDestroy(array));
}

static void
copy_3d(CUarray array, size_t side, size_t depth, bool in)
{
    CUDA_MEMCPY3D copy = {.WidthInBytes = side * 4, .Height = side, .Depth = depth};

    if (in) {
        copy.srcMemoryType = CU_MEMORYTYPE_HOST;
        copy.srcHost = host;
        copy.srcPitch = side * 4;
        copy.srcHeight = side;
        copy.dstMemoryType = CU_MEMORYTYPE_ARRAY;
        copy.dstArray = array;
    } else {
        copy.srcMemoryType = CU_MEMORYTYPE_ARRAY;
        copy.srcArray = array;
        copy.dstMemoryType = CU_MEMORYTYPE_HOST;
        copy.dstHost = back;
        copy.dstPitch = side * 4;
        copy.dstHeight = side;
    }
    CHECK(cu.cuMemcpy3D(&copy));
}

static void
three_dimensions(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 64,
                                     .Height = 64,
                                     .Depth = 16,
                                     .Format = CU_AD_FORMAT_UNSIGNED_INT32,
                                     .NumChannels = 1};
    CUarray array;

    CHECK(cu.cuArray3DCreate(&array, &shape));
    copy_3d(array, 64, 16, true);
    memset(back, 0, sizeof back);
    copy_3d(array, 64, 16, false);
    printf("RESULT arrays 3d hash=%016llx\n", (unsigned long long)hm_hash(back, sizeof back));
    CHECK(cu.cuArrayDestroy(array));
}

static void
mipmaps(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = 64, .Height = 64, .Format = CU_AD_FORMAT_UNSIGNED_INT32, .NumChannels = 1};
    CUmipmappedArray mipmap;

    CHECK(cu.cuMipmappedArrayCreate(&mipmap, &shape, 4));
    for (unsigned level = 0; level < 4; level++) {
        size_t side = 64u >> level;
        CUarray array;

        CHECK(cu.cuMipmappedArrayGetLevel(&array, mipmap, level));
        copy_3d(array, side, 1, true);
        memset(back, 0, sizeof back);
        copy_3d(array, side, 1, false);
        printf("RESULT arrays mipmap level=%u hash=%016llx\n", level,
               (unsigned long long)hm_hash(back, side * side * 4));
    }
    CHECK(cu.cuMipmappedArrayDestroy(mipmap));
}

int
main(void)
{
    CUdevice device;

    hm_start(&device);
    for (unsigned i = 0; i < sizeof host / sizeof host[0]; i++)
        host[i] = i * 2654435761u;
    two_dimensions();
    three_dimensions();
    mipmaps();
    return 0;
}
