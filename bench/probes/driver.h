/*
 * What every driver-API program here shares: libcuda by one of three routes, three kernels as PTX,
 * checked calls.
 *
 * The same source runs on a card and on the simulated driver. HM_ROUTE in the environment chooses
 * how the entry points are found: "dlsym" (default) or "proc" (cuGetProcAddress_v2); built with
 * -DHM_LINKED they are linked.
 */
#ifndef HM_BENCH_DRIVER_H
#define HM_BENCH_DRIVER_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <cuda.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * cuda.h's macros give each name its version and stream mode; #name still shows the name without
 * them.
 */
#define HM_ENTRIES(X)                 \
    X(cuInit)                         \
    X(cuDriverGetVersion)             \
    X(cuGetErrorName)                 \
    X(cuDeviceGet)                    \
    X(cuDeviceGetCount)               \
    X(cuDeviceGetName)                \
    X(cuDeviceGetUuid)                \
    X(cuDeviceTotalMem)               \
    X(cuDeviceGetDefaultMemPool)      \
    X(cuDeviceGetGraphMemAttribute)   \
    X(cuDeviceGraphMemTrim)           \
    X(cuDevicePrimaryCtxRetain)       \
    X(cuDevicePrimaryCtxRelease)      \
    X(cuCtxSetCurrent)                \
    X(cuCtxSynchronize)               \
    X(cuCtxSetLimit)                  \
    X(cuCtxGetLimit)                  \
    X(cuModuleLoadData)               \
    X(cuModuleUnload)                 \
    X(cuModuleGetFunction)            \
    X(cuLaunchKernel)                 \
    X(cuStreamCreate)                 \
    X(cuStreamDestroy)                \
    X(cuStreamSynchronize)            \
    X(cuStreamBeginCapture)           \
    X(cuStreamEndCapture)             \
    X(cuEventCreate)                  \
    X(cuEventRecord)                  \
    X(cuEventSynchronize)             \
    X(cuEventDestroy)                 \
    X(cuMemGetInfo)                   \
    X(cuMemAlloc)                     \
    X(cuMemAllocPitch)                \
    X(cuMemAllocManaged)              \
    X(cuMemFree)                      \
    X(cuMemcpyHtoD)                   \
    X(cuMemcpyDtoH)                   \
    X(cuMemcpyDtoD)                   \
    X(cuMemcpyDtoHAsync)              \
    X(cuMemcpy2D)                     \
    X(cuMemcpy3D)                     \
    X(cuMemsetD32)                    \
    X(cuMemsetD32Async)               \
    X(cuMemAllocAsync)                \
    X(cuMemFreeAsync)                 \
    X(cuMemAllocFromPoolAsync)        \
    X(cuMemPoolCreate)                \
    X(cuMemPoolDestroy)               \
    X(cuMemPoolTrimTo)                \
    X(cuMemPoolSetAttribute)          \
    X(cuMemPoolGetAttribute)          \
    X(cuMemGetAllocationGranularity)  \
    X(cuMemCreate)                    \
    X(cuMemRelease)                   \
    X(cuMemRetainAllocationHandle)    \
    X(cuMemAddressReserve)            \
    X(cuMemAddressFree)               \
    X(cuMemMap)                       \
    X(cuMemUnmap)                     \
    X(cuMemSetAccess)                 \
    X(cuMemExportToShareableHandle)   \
    X(cuMemImportFromShareableHandle) \
    X(cuIpcGetMemHandle)              \
    X(cuIpcOpenMemHandle)             \
    X(cuIpcCloseMemHandle)            \
    X(cuArrayCreate)                  \
    X(cuArray3DCreate)                \
    X(cuArrayDestroy)                 \
    X(cuMipmappedArrayCreate)         \
    X(cuMipmappedArrayGetLevel)       \
    X(cuMipmappedArrayDestroy)        \
    X(cuGraphCreate)                  \
    X(cuGraphDestroy)                 \
    X(cuGraphAddMemAllocNode)         \
    X(cuGraphAddMemFreeNode)          \
    X(cuGraphAddKernelNode)           \
    X(cuGraphInstantiateWithFlags)    \
    X(cuGraphExecDestroy)             \
    X(cuGraphLaunch)

/*
 * What cuGetProcAddress is asked for. 13.0 adds a second cuCtxSynchronize under the same name, which
 * cuda.h's macros do not mean.
 */
#define HM_VERSION 12080

#define HM_TEXT2(name) #name
#define HM_TEXT(name) HM_TEXT2(name)

struct hm_driver {
#define HM_FIELD(name) __typeof__(&name) name;
    HM_ENTRIES(HM_FIELD)
#undef HM_FIELD
};
static struct hm_driver cu;

/* One line to stderr and exit status 1: a probe that cannot go on has no result. */
#define hm_die(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

static inline const char *
hm_error(CUresult code)
{
    const char *name = NULL;

    if (cu.cuGetErrorName == NULL || cu.cuGetErrorName(code, &name) != CUDA_SUCCESS || name == NULL)
        return "unrecognized";
    return name;
}

#define CHECK(call)                                                              \
    do {                                                                         \
        CUresult hm_code_ = (call);                                              \
        if (hm_code_ != CUDA_SUCCESS)                                            \
            hm_die("%s:%d: %s: %d %s", __FILE__, __LINE__, #call, (int)hm_code_, \
                   hm_error(hm_code_));                                          \
    } while (0)

/*
 * Fills cu. An entry that this driver lacks stays NULL; calling it would crash, so probes of new
 * entries look first.
 */
static inline void
hm_load(void)
{
#ifdef HM_LINKED
#define HM_LINK(name) cu.name = &name;
    HM_ENTRIES(HM_LINK)
#undef HM_LINK
#else
    const char *route = getenv("HM_ROUTE");
    void *library = dlopen("libcuda.so.1", RTLD_NOW);

    if (library == NULL)
        hm_die("libcuda.so.1: %s", dlerror());
    if (route != NULL && strcmp(route, "proc") == 0) {
        CUresult (*lookup)(const char *, void **, int, cuuint64_t,
                           CUdriverProcAddressQueryResult *);
        void *entry;

        *(void **)&lookup = dlsym(library, "cuGetProcAddress_v2");
        if (lookup == NULL)
            hm_die("cuGetProcAddress_v2 is not there");
#ifdef CUDA_API_PER_THREAD_DEFAULT_STREAM
#define HM_MODE CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM
#else
#define HM_MODE CU_GET_PROC_ADDRESS_LEGACY_STREAM
#endif
#define HM_ASK(name)                                                      \
    entry = NULL;                                                         \
    if (lookup(#name, &entry, HM_VERSION, HM_MODE, NULL) == CUDA_SUCCESS) \
        *(void **)&cu.name = entry;
        HM_ENTRIES(HM_ASK)
#undef HM_ASK
    } else {
#define HM_FIND(name) *(void **)&cu.name = dlsym(library, HM_TEXT(name));
        HM_ENTRIES(HM_FIND)
#undef HM_FIND
    }
#endif
    if (cu.cuInit == NULL || cu.cuMemAlloc == NULL)
        hm_die("the driver library has no cuInit or cuMemAlloc");
}

/* Loads the driver, initializes it and makes device 0's primary context current. */
static inline CUcontext
hm_start(CUdevice *device)
{
    CUcontext context;

    hm_load();
    CHECK(cu.cuInit(0));
    CHECK(cu.cuDeviceGet(device, 0));
    CHECK(cu.cuDevicePrimaryCtxRetain(&context, *device));
    CHECK(cu.cuCtxSetCurrent(context));
    return context;
}

static inline uint64_t
hm_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void
hm_sleep_ms(long ms)
{
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};

    while (nanosleep(&left, &left) != 0)
        ;
}

/* FNV-1a: what a program prints of the bytes it read back. */
static inline uint64_t
hm_hash(const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

#endif
