/*
 * Everything at once, for the sanitizers: threads that allocate in every way under a tight cap, look names up, ask how
 * much is left, and fork meanwhile. Argument 1: rounds of each thread. Ends with 0 if all was given back.
 */
#include <cuda.h>
#include <nvml.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB 1048576ul
#define THREADS 4

static int rounds;
static CUcontext context;
static unsigned long refused;

/* Out of memory is an answer here; anything else is not. */
static bool
took(CUresult result, const char *what)
{
    if (result == CUDA_SUCCESS)
        return true;
    if (result != CUDA_ERROR_OUT_OF_MEMORY) {
        fprintf(stderr, "%s answered %d\n", what, (int)result);
        _exit(10);
    }
    __atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
    return false;
}
#define TOOK(call) took(call, #call)

static void
linear(unsigned *seed)
{
    CUdeviceptr pointer[5] = {0};
    size_t pitch, free_bytes, total;

    TOOK(cuMemAlloc(&pointer[0], (rand_r(seed) % 96 + 1) * MIB));
    TOOK(cuMemAlloc(&pointer[1], rand_r(seed) % 100000 + 1));
    TOOK(cuMemAllocPitch(&pointer[2], &pitch, 1000, rand_r(seed) % 100 + 1, 4));
    TOOK(cuMemAllocManaged(&pointer[3], 3 * MIB, CU_MEM_ATTACH_GLOBAL));
    TOOK(cuMemGetInfo(&free_bytes, &total));
    /* Refused, unless the others freed as much just now. */
    TOOK(cuMemAlloc(&pointer[4], free_bytes + 64 * MIB));
    for (int i = 0; i < 5; i++)
        if (pointer[i] != 0)
            TOOK(cuMemFree(pointer[i]));
}

static void
pools(unsigned *seed, CUstream stream)
{
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    CUmemoryPool pool = NULL;
    CUdeviceptr shared = 0, own = 0;

    if (TOOK(cuMemAllocAsync(&shared, (rand_r(seed) % 32 + 1) * MIB, stream)))
        TOOK(cuMemFreeAsync(shared, stream));
    if (!TOOK(cuMemPoolCreate(&pool, &props)))
        return;
    if (TOOK(cuMemAllocFromPoolAsync(&own, (rand_r(seed) % 32 + 1) * MIB, pool, stream)))
        TOOK(cuMemFreeAsync(own, stream));
    TOOK(cuStreamSynchronize(stream));
    TOOK(cuMemPoolTrimTo(pool, 0));
    TOOK(cuMemPoolDestroy(pool));
}

static void
virtual(unsigned *seed)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    size_t bytes = (rand_r(seed) % 16 + 1) * 2 * MIB;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;

    if (!TOOK(cuMemCreate(&handle, bytes, &prop, 0)))
        return;
    TOOK(cuMemAddressReserve(&address, bytes, 0, 0, 0));
    TOOK(cuMemMap(address, bytes, 0, handle, 0));
    TOOK(cuMemRelease(handle));
    TOOK(cuMemUnmap(address, bytes));
    TOOK(cuMemAddressFree(address, bytes));
}

static void
arrays(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = 1024, .Height = 512, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4};
    CUarray array;
    CUmipmappedArray mipmap;

    if (TOOK(cuArray3DCreate(&array, &shape)))
        TOOK(cuArrayDestroy(array));
    if (TOOK(cuMipmappedArrayCreate(&mipmap, &shape, 3)))
        TOOK(cuMipmappedArrayDestroy(mipmap));
}

static void
graphs(CUstream stream)
{
    CUDA_MEM_ALLOC_NODE_PARAMS take = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}},
        .bytesize = 8 * MIB};
    CUgraphNode taken, given;
    CUgraphExec exec;
    CUgraph graph;

    TOOK(cuGraphCreate(&graph, 0));
    TOOK(cuGraphAddMemAllocNode(&taken, graph, NULL, 0, &take));
    TOOK(cuGraphAddMemFreeNode(&given, graph, &taken, 1, take.dptr));
    if (TOOK(cuGraphInstantiate(&exec, graph, 0))) {
        TOOK(cuGraphLaunch(exec, stream));
        TOOK(cuStreamSynchronize(stream));
        TOOK(cuGraphExecDestroy(exec));
    }
    TOOK(cuGraphDestroy(graph));
    TOOK(cuDeviceGraphMemTrim(0));
}

static void
look(nvmlDevice_t card)
{
    CUdriverProcAddressQueryResult status;
    nvmlMemory_t memory;
    void *found;

    if (dlsym(RTLD_DEFAULT, "cuMemAlloc_v2") == NULL || dlsym(RTLD_DEFAULT, "malloc") == NULL ||
        cuGetProcAddress("cuMemFree", &found, 12000, 0, &status) != CUDA_SUCCESS ||
        nvmlDeviceGetMemoryInfo(card, &memory) != NVML_SUCCESS)
        _exit(11);
}

static void *
mix(void *number)
{
    unsigned seed = (unsigned)(uintptr_t)number;
    nvmlDevice_t card;
    CUstream stream;

    TOOK(cuCtxSetCurrent(context));
    TOOK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    if (nvmlInit() != NVML_SUCCESS || nvmlDeviceGetHandleByIndex(0, &card) != NVML_SUCCESS)
        _exit(12);
    for (int i = 0; i < rounds; i++) {
        linear(&seed);
        pools(&seed, stream);
        virtual(&seed);
        arrays();
        graphs(stream);
        look(card);
    }
    TOOK(cuStreamDestroy(stream));
    return NULL;
}

static void
fork_once(void)
{
    pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        CUdeviceptr pointer;

        alarm(30);
        _exit(cuMemAlloc(&pointer, MIB) == CUDA_SUCCESS ? 13 : 0);
    }
    waitpid(pid, &status, 0);
    if (status != 0) {
        fprintf(stderr, "the child ended with %d\n", status);
        _exit(14);
    }
}

int
main(int count, char **argument)
{
    pthread_t thread[THREADS];

    rounds = count > 1 ? atoi(argument[1]) : 10;
    TOOK(cuInit(0));
    TOOK(cuDevicePrimaryCtxRetain(&context, 0));
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&thread[i], NULL, mix, (void *)(i + 1));
    for (int i = 0; i < 5; i++) {
        usleep(20000);
        fork_once();
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    TOOK(cuDevicePrimaryCtxRelease(0));
    printf("refused %s\n", refused > 0 ? "some" : "none");
    return 0;
}
