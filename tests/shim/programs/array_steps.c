/* Arrays of every kind: what one takes when it is made, and that it is given back. array_steps [fill|tiny] */
#include "steps.h"

struct shape {
    const char *name;
    CUDA_ARRAY3D_DESCRIPTOR descriptor;
    unsigned int levels; /* 0: no mipmap */
};

static const struct shape shapes[] = {
    {"plane", {1000, 1000, 0, CU_AD_FORMAT_FLOAT, 4, 0}, 0},
    {"odd-plane", {4097, 4097, 0, CU_AD_FORMAT_FLOAT, 2, 0}, 0},
    {"line", {100000, 0, 0, CU_AD_FORMAT_FLOAT, 4, 0}, 0},
    {"lines", {5000, 0, 100, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_LAYERED}, 0},
    {"volume", {257, 257, 257, CU_AD_FORMAT_FLOAT, 1, 0}, 0},
    {"bytes", {130, 130, 130, CU_AD_FORMAT_UNSIGNED_INT8, 1, 0}, 0},
    {"layers", {500, 500, 10, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_LAYERED}, 0},
    {"cube", {500, 500, 6, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_CUBEMAP}, 0},
    {"surface", {3000, 2000, 0, CU_AD_FORMAT_UNSIGNED_INT16, 2, CUDA_ARRAY3D_SURFACE_LDST}, 0},
    {"mipmap", {3000, 3000, 0, CU_AD_FORMAT_FLOAT, 1, 0}, 12},
    {"volume-mipmap", {128, 128, 128, CU_AD_FORMAT_FLOAT, 1, 0}, 4},
    {"sparse", {8192, 8192, 0, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_SPARSE}, 0},
    {"deferred", {8192, 8192, 0, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_DEFERRED_MAPPING}, 0},
};

static void
mipmap(const struct shape *shape)
{
    CUmipmappedArray mipmap;

    CHECK(cuMipmappedArrayCreate(&mipmap, &shape->descriptor, shape->levels));
    stop(shape->name);
    CHECK(cuMipmappedArrayDestroy(mipmap));
}

static void
array(const struct shape *shape)
{
    CUarray array;

    CHECK(cuArray3DCreate(&array, &shape->descriptor));
    stop(shape->name);
    CHECK(cuArrayDestroy(array));
}

static void
two_dimensions(void)
{
    CUDA_ARRAY_DESCRIPTOR descriptor = {2048, 2048, CU_AD_FORMAT_HALF, 2};
    CUarray array;

    CHECK(cuArrayCreate(&array, &descriptor));
    stop("two-dimensions");
    CHECK(cuArrayDestroy(array));
}

/* Many that share blocks, which the driver packs in its own way. */
static void
tiny(void)
{
    CUDA_ARRAY_DESCRIPTOR descriptor = {16, 16, CU_AD_FORMAT_FLOAT, 1};
    CUarray array[200];

    for (int i = 0; i < 200; i++)
        CHECK(cuArrayCreate(&array[i], &descriptor));
    stop("tiny");
    for (int i = 0; i < 200; i++)
        CHECK(cuArrayDestroy(array[i]));
    stop("tiny-gone");
}

static void
refused_by_the_driver(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {4096, 4096, 0, CU_AD_FORMAT_FLOAT, 7, 0};
    CUmipmappedArray mipmap;
    CUarray array;

    answer("wrong-channels", cuArray3DCreate(&array, &shape));
    answer("wrong-levels", cuMipmappedArrayCreate(&mipmap, &shape, 99));
    answer("no-descriptor", cuArray3DCreate(&array, NULL));
    stop("after-errors");
}

/* 64 MiB each, up to the cap. */
static void
fill(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {4096, 4096, 0, CU_AD_FORMAT_FLOAT, 1, 0};
    CUmipmappedArray mipmap;
    CUarray kept[4096], extra;
    unsigned int count = 0;

    while (count < 4096 && cuArray3DCreate(&kept[count], &shape) == CUDA_SUCCESS)
        count++;
    stop("full");
    answer("over", cuArray3DCreate(&extra, &shape));
    answer("mipmap-over", cuMipmappedArrayCreate(&mipmap, &shape, 3));
    CHECK(cuArrayDestroy(kept[--count]));
    CHECK(cuArray3DCreate(&kept[count++], &shape));
    stop("full-again");
    while (count > 0)
        CHECK(cuArrayDestroy(kept[--count]));
    stop("empty");
}

int
main(int count, char **arguments)
{
    start();
    if (count > 1 && strcmp(arguments[1], "fill") == 0) {
        fill();
        return 0;
    }
    if (count > 1) {
        tiny();
        return 0;
    }
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if (shapes[i].levels > 0)
            mipmap(&shapes[i]);
        else
            array(&shapes[i]);
    two_dimensions();
    stop("gone");
    refused_by_the_driver();
    return 0;
}
