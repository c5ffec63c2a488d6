/*
 * What the local memory of kernels takes of the card, and when: at load, at the first look at its attributes, at its
 * launch; and what NVML costs to initialize. Printed as JSON lines.
 *
 *     cc -O2 -I<headers> local.c -o local -ldl && ./local
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <nvml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void *cuda, *nvml;
#define CU(name) ((__typeof__(&name))dlsym(cuda, #name))
static nvmlDevice_t card;

static double
now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static long
mine(void)
{
    nvmlProcessInfo_t list[256];
    unsigned int count = 256;
    nvmlReturn_t (*get)(nvmlDevice_t, unsigned int *, nvmlProcessInfo_t *) =
        (nvmlReturn_t (*)(nvmlDevice_t, unsigned int *, nvmlProcessInfo_t *))dlsym(
            nvml, "nvmlDeviceGetComputeRunningProcesses_v3");

    get(card, &count, list);
    for (unsigned int i = 0; i < count; i++)
        if (list[i].pid == (unsigned int)getpid())
            return (long)(list[i].usedGpuMemory >> 10);
    return -1;
}

static const char *kernel =
    ".version 7.0\n.target sm_50\n.address_size 64\n"
    ".visible .entry k(.param .u64 out, .param .u32 i)\n{\n"
    ".local .align 4 .b8 buf[%d];\n.reg .b64 %%a<6>;\n.reg .b32 %%r<6>;\n"
    "ld.param.u64 %%a1, [out];\nld.param.u32 %%r1, [i];\nmov.u64 %%a2, buf;\n"
    "mul.wide.u32 %%a3, %%r1, 4;\nadd.u64 %%a4, %%a2, %%a3;\nst.local.u32 [%%a4], %%r1;\n"
    "ld.local.u32 %%r2, [%%a2];\nst.global.u32 [%%a1], %%r2;\nret;\n}\n";

static size_t
stack_limit(void)
{
    size_t limit = 0;

    CU(cuCtxGetLimit)(&limit, CU_LIMIT_STACK_SIZE);
    return limit;
}

static void
try_size(int bytes, CUdeviceptr out)
{
    char text[2048];
    unsigned int index = 0;
    void *arguments[] = {&out, &index};
    CUmodule module;
    CUfunction function;
    int local = -1, threads = 32;
    long start = mine(), loaded, got, asked;
    CUresult result;

    snprintf(text, sizeof(text), kernel, bytes);
    CU(cuModuleLoadData)(&module, text);
    loaded = mine();
    CU(cuModuleGetFunction)(&function, module, "k");
    got = mine();
    CU(cuFuncGetAttribute)(&local, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function);
    asked = mine();
    result = CU(cuLaunchKernel)(function, 1, 1, 1, threads, 1, 1, 0, NULL, arguments, NULL);
    CU(cuCtxSynchronize)();
    printf("{\"local\": %d, \"attribute\": %d, \"load_kib\": %ld, \"get_kib\": %ld, "
           "\"attribute_kib\": %ld, "
           "\"launch_kib\": %ld, \"result\": %d, \"stack_limit\": %zu, \"total_kib\": %ld}\n",
           bytes, local, loaded - start, got - loaded, asked - got, mine() - asked, result,
           stack_limit(), mine());
    CU(cuModuleUnload)(module);
}

int
main(void)
{
    static const int sizes[] = {16, 64, 128, 256, 320, 512, 1000, 1024, 2048, 4096, 65536};
    CUcontext context;
    CUdevice device;
    CUdeviceptr out;
    double start;
    int value;

    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    start = now_ms();
    ((nvmlReturn_t (*)(void))dlsym(nvml, "nvmlInit_v2"))();
    printf("{\"nvml_init_ms\": %.2f", now_ms() - start);
    start = now_ms();
    CU(cuInit)(0);
    printf(", \"cuinit_ms\": %.2f", now_ms() - start);
    ((__typeof__(&nvmlDeviceGetHandleByIndex))dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2"))(0,
                                                                                            &card);
    CU(cuDeviceGet)(&device, 0);
    start = now_ms();
    CU(cuDevicePrimaryCtxRetain)(&context, device);
    printf(", \"context_ms\": %.2f}\n", now_ms() - start);
    CU(cuCtxSetCurrent)(context);
    ((__typeof__(&cuMemAlloc))dlsym(cuda, "cuMemAlloc_v2"))(&out, 4096);
    CU(cuDeviceGetAttribute)(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    printf("{\"processors\": %d, \"stack_limit\": %zu, \"kib\": %ld}\n", value, stack_limit(),
           mine());
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        try_size(sizes[i], out);
    for (size_t limit = 2048; limit <= 8192; limit *= 2) {
        long before = mine();
        CUresult result = CU(cuCtxSetLimit)(CU_LIMIT_STACK_SIZE, limit);

        printf("{\"set_stack\": %zu, \"result\": %d, \"kib\": %ld, \"stack_limit\": %zu}\n", limit,
               result, mine() - before, stack_limit());
        try_size(16, out);
    }
    for (size_t limit = 16 << 20; limit <= 64 << 20; limit *= 2) {
        long before = mine();
        CUresult result = CU(cuCtxSetLimit)(CU_LIMIT_MALLOC_HEAP_SIZE, limit);

        printf("{\"set_heap\": %zu, \"result\": %d, \"kib\": %ld}\n", limit, result,
               mine() - before);
        try_size(16, out);
    }
    return 0;
}
