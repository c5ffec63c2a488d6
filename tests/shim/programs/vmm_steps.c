/* Physical memory of cuMemCreate: what keeps it, what ends it. vmm_steps lifetimes|refusals|tiles|threads */
#include "steps.h"

#include <pthread.h>

static CUmemAllocationProp
prop_on(CUmemLocationType type, int id)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = type, .id = id}};

    return prop;
}

static CUmemGenericAllocationHandle
create(size_t bytes)
{
    CUmemAllocationProp prop = prop_on(CU_MEM_LOCATION_TYPE_DEVICE, device);
    CUmemGenericAllocationHandle handle;

    CHECK(cuMemCreate(&handle, bytes, &prop, 0));
    return handle;
}

static CUdeviceptr
reserve(size_t bytes)
{
    CUdeviceptr address;

    CHECK(cuMemAddressReserve(&address, bytes, 0, 0, 0));
    return address;
}

static void
handle_first(void)
{
    CUmemGenericAllocationHandle handle = create(6 * MIB);
    CUdeviceptr address = reserve(6 * MIB);

    stop("created");
    CHECK(cuMemMap(address, 6 * MIB, 0, handle, 0));
    stop("mapped");
    CHECK(cuMemRelease(handle));
    stop("released");
    CHECK(cuMemUnmap(address, 6 * MIB));
    stop("unmapped");
    CHECK(cuMemAddressFree(address, 6 * MIB));
}

static void
mapping_first(void)
{
    CUmemGenericAllocationHandle handle = create(4 * MIB);
    CUdeviceptr address = reserve(4 * MIB);

    CHECK(cuMemMap(address, 4 * MIB, 0, handle, 0));
    CHECK(cuMemUnmap(address, 4 * MIB));
    stop("handle-left");
    CHECK(cuMemMap(address, 4 * MIB, 0, handle, 0));
    CHECK(cuMemUnmap(address, 4 * MIB));
    CHECK(cuMemRelease(handle));
    stop("handle-gone");
    CHECK(cuMemAddressFree(address, 4 * MIB));
}

static void
retained(void)
{
    CUmemGenericAllocationHandle handle = create(8 * MIB), again;
    CUdeviceptr address = reserve(8 * MIB);

    CHECK(cuMemMap(address, 8 * MIB, 0, handle, 0));
    CHECK(cuMemRelease(handle));
    CHECK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(address + 5 * MIB)));
    CHECK(cuMemUnmap(address, 8 * MIB));
    stop("retained");
    CHECK(cuMemMap(address, 8 * MIB, 0, again, 0));
    CHECK(cuMemRetainAllocationHandle(&handle, (void *)(uintptr_t)address));
    CHECK(cuMemRelease(again));
    CHECK(cuMemUnmap(address, 8 * MIB));
    stop("retained-again");
    CHECK(cuMemRelease(handle));
    stop("retained-gone");
    CHECK(cuMemAddressFree(address, 8 * MIB));
}

/* Two mappings of one allocation and one of another, two of the three unmapped by one call. */
static void
several(void)
{
    CUmemGenericAllocationHandle one = create(4 * MIB), other = create(2 * MIB);
    CUdeviceptr address = reserve(10 * MIB);

    CHECK(cuMemMap(address, 4 * MIB, 0, one, 0));
    CHECK(cuMemMap(address + 4 * MIB, 4 * MIB, 0, one, 0));
    CHECK(cuMemMap(address + 8 * MIB, 2 * MIB, 0, other, 0));
    CHECK(cuMemRelease(one));
    CHECK(cuMemRelease(other));
    stop("several");
    CHECK(cuMemUnmap(address, 4 * MIB));
    stop("one-unmapped");
    CHECK(cuMemUnmap(address + 4 * MIB, 6 * MIB));
    stop("all-unmapped");
    CHECK(cuMemAddressFree(address, 10 * MIB));
}

static void
lifetimes(void)
{
    handle_first();
    mapping_first();
    retained();
    several();
}

/* Fill up to the cap, and go on after a refusal. */
static void
refusals(void)
{
    CUmemAllocationProp here = prop_on(CU_MEM_LOCATION_TYPE_DEVICE, device);
    CUmemAllocationProp host = prop_on(CU_MEM_LOCATION_TYPE_HOST_NUMA, 0);
    CUmemAllocationProp nowhere = prop_on(CU_MEM_LOCATION_TYPE_DEVICE, 99);
    CUmemGenericAllocationHandle handle, kept[4096];
    CUdeviceptr address = reserve(64 * MIB);
    unsigned int count = 0;

    while (count < 4096 && cuMemCreate(&kept[count], 64 * MIB, &here, 0) == CUDA_SUCCESS)
        count++;
    stop("full");
    answer("over", cuMemCreate(&handle, 64 * MIB, &here, 0));
    if (cuMemCreate(&handle, 64 * MIB, &host, 0) == CUDA_SUCCESS)
        CHECK(cuMemRelease(handle));
    stop("host-memory");
    answer("no-device", cuMemCreate(&handle, 2 * MIB, &nowhere, 0));
    answer("no-prop", cuMemCreate(&handle, 2 * MIB, NULL, 0));
    answer("odd-size", cuMemCreate(&handle, 1000, &here, 0));
    CHECK(cuMemRelease(kept[--count]));
    CHECK(cuMemCreate(&kept[count++], 64 * MIB, &here, 0));
    stop("full-again");
    CHECK(cuMemMap(address, 64 * MIB, 0, kept[0], 0));
    answer("mapped-twice", cuMemMap(address, 64 * MIB, 0, kept[1], 0));
    CHECK(cuMemUnmap(address, 64 * MIB));
    while (count > 0)
        CHECK(cuMemRelease(kept[--count]));
    stop("empty");
}

static CUarrayMapInfo
map_info(CUarray array, CUmemGenericAllocationHandle pool, unsigned int x, unsigned int width,
         unsigned int height)
{
    CUarrayMapInfo info = {.resourceType = CU_RESOURCE_TYPE_ARRAY,
                           .resource = {.array = array},
                           .subresourceType = CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_SPARSE_LEVEL,
                           .memOperationType =
                               pool != 0 ? CU_MEM_OPERATION_TYPE_MAP : CU_MEM_OPERATION_TYPE_UNMAP,
                           .memHandleType = CU_MEM_HANDLE_TYPE_GENERIC,
                           .memHandle = {.memHandle = pool},
                           .deviceBitMask = 1u << device};

    info.subresource.sparseLevel.offsetX = x;
    info.subresource.sparseLevel.extentWidth = width;
    info.subresource.sparseLevel.extentHeight = height;
    info.subresource.sparseLevel.extentDepth = 1;
    return info;
}

/* Memory mapped into a sparse array outlives its handle, until it is unmapped or the array goes. */
static void
tiles(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 4096,
                                     .Height = 4096,
                                     .Format = CU_AD_FORMAT_FLOAT,
                                     .NumChannels = 1,
                                     .Flags = CUDA_ARRAY3D_SPARSE};
    CUmemAllocationProp prop = prop_on(CU_MEM_LOCATION_TYPE_DEVICE, device);
    CUmemGenericAllocationHandle pool[2];
    CUDA_ARRAY_SPARSE_PROPERTIES tile;
    CUarrayMapInfo info[2];
    CUarray array;

    prop.allocFlags.usage = CU_MEM_CREATE_USAGE_TILE_POOL;
    CHECK(cuArray3DCreate(&array, &shape));
    CHECK(cuArrayGetSparseProperties(&tile, array));
    CHECK(cuMemCreate(&pool[0], 4 * MIB, &prop, 0));
    CHECK(cuMemCreate(&pool[1], 6 * MIB, &prop, 0));
    stop("pools");
    info[0] = map_info(array, pool[0], 0, tile.tileExtent.width, tile.tileExtent.height);
    info[1] = map_info(array, pool[1], tile.tileExtent.width, tile.tileExtent.width,
                       tile.tileExtent.height);
    CHECK(cuMemMapArrayAsync(info, 2, NULL));
    CHECK(cuCtxSynchronize());
    CHECK(cuMemRelease(pool[0]));
    CHECK(cuMemRelease(pool[1]));
    stop("tiled");
    info[0] = map_info(array, 0, 0, tile.tileExtent.width, tile.tileExtent.height);
    CHECK(cuMemMapArrayAsync(info, 1, NULL));
    CHECK(cuCtxSynchronize());
    stop("one-untiled");
    CHECK(cuArrayDestroy(array));
    stop("array-gone");
}

enum { THREADS = 8, ROUNDS = 300 };

/* Everything at once, on handles that get each other's numbers. */
static void *
churn(void *argument)
{
    unsigned int seed = (unsigned int)(uintptr_t)argument;
    CUdeviceptr address = reserve(8 * MIB);
    CUcontext context;

    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    for (int i = 0; i < ROUNDS; i++) {
        size_t bytes = 2 * MIB * (1 + (size_t)rand_r(&seed) % 2);
        CUmemGenericAllocationHandle handle = create(bytes), again;
        int early = rand_r(&seed) % 2;

        CHECK(cuMemMap(address, bytes, 0, handle, 0));
        CHECK(cuMemMap(address + bytes, bytes, 0, handle, 0));
        if (early)
            CHECK(cuMemRelease(handle));
        CHECK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(address + MIB)));
        CHECK(cuMemUnmap(address, 2 * bytes));
        CHECK(cuMemRelease(again));
        if (!early)
            CHECK(cuMemRelease(handle));
    }
    CHECK(cuMemAddressFree(address, 8 * MIB));
    return NULL;
}

static void
threads(void)
{
    pthread_t thread[THREADS];

    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&thread[i], NULL, churn, (void *)(i + 1)) != 0)
            exit(2);
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    stop("all-back");
}

int
main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "lifetimes";

    start();
    if (strcmp(what, "lifetimes") == 0)
        lifetimes();
    else if (strcmp(what, "refusals") == 0)
        refusals();
    else if (strcmp(what, "threads") == 0)
        threads();
    else
        tiles();
    return 0;
}
