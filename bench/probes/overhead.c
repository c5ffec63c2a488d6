/*
 * What the calls of a driver-API program cost: overhead [--context-only | --nvml | --nvml-beside].
 * One JSON object of ns.
 *
 * --nvml: what NVML costs a process that does nothing else. --nvml-beside: the same on a second
 * thread while the first makes a context, which is what a shim would do. Also runs on the simulated
 * driver.
 */
#include "driver.h"

#include <pthread.h>

#include "batches.h"
#include "kernels.h"

static CUdeviceptr block;
static CUstream stream;
static CUgraphExec graph;
static struct hm_kernels kernels;

static void
settle(void)
{
    CHECK(cu.cuCtxSynchronize());
}

static void
malloc_4k(void)
{
    CHECK(cu.cuMemAlloc(&block, 4096));
    CHECK(cu.cuMemFree(block));
}

static void
malloc_64m(void)
{
    CHECK(cu.cuMemAlloc(&block, 64 << 20));
    CHECK(cu.cuMemFree(block));
}

static void
malloc_async_1m(void)
{
    CHECK(cu.cuMemAllocAsync(&block, 1 << 20, stream));
    CHECK(cu.cuMemFreeAsync(block, stream));
}

static void
mem_get_info(void)
{
    size_t free_bytes, total_bytes;

    CHECK(cu.cuMemGetInfo(&free_bytes, &total_bytes));
}

static void
launch(void)
{
    CHECK(cu.cuLaunchKernel(kernels.empty, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL));
}

static void
launch_sync(void)
{
    launch();
    CHECK(cu.cuStreamSynchronize(stream));
}

static void
graph_launch(void)
{
    CHECK(cu.cuGraphLaunch(graph, stream));
}

static void
make_graph(void)
{
    CUgraph made;

    CHECK(cu.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (int i = 0; i < 50; i++)
        launch();
    CHECK(cu.cuStreamEndCapture(stream, &made));
    CHECK(cu.cuGraphInstantiateWithFlags(&graph, made, 0));
}

/* NVML by dlsym, in the steps that a program asking for its own memory takes. */
static double nvml_ns[3];

static void *
ask_nvml(void *unused)
{
    double start = hm_clock_ns();
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    int (*init)(void), (*handle)(unsigned, void **), (*processes)(void *, unsigned *, void *);
    unsigned count = 64;
    void *device;
    char infos[64 * 24]; /* nvmlProcessInfo_t of _v3: pid, bytes, two instance ids */

    (void)unused;
    if (library == NULL)
        hm_die("libnvidia-ml.so.1: %s", dlerror());
    *(void **)&init = dlsym(library, "nvmlInit_v2");
    *(void **)&handle = dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
    *(void **)&processes = dlsym(library, "nvmlDeviceGetComputeRunningProcesses_v3");
    if (init == NULL || handle == NULL || processes == NULL || init() != 0)
        hm_die("NVML cannot be used");
    nvml_ns[0] = hm_clock_ns() - start;
    if (handle(0, &device) != 0)
        hm_die("NVML has no device 0");
    nvml_ns[1] = hm_clock_ns() - start - nvml_ns[0];
    if (processes(device, &count, infos) != 0)
        hm_die("NVML does not list processes");
    nvml_ns[2] = hm_clock_ns() - start - nvml_ns[0] - nvml_ns[1];
    return NULL;
}

static void
print_nvml(void)
{
    hm_print_value("nvml_init", nvml_ns[0]);
    hm_print_value("nvml_handle", nvml_ns[1]);
    hm_print_value("nvml_processes", nvml_ns[2]);
}

static void
make_context(void)
{
    double start = hm_clock_ns(), middle;
    CUcontext context;
    CUdevice device;

    hm_load();
    CHECK(cu.cuInit(0));
    middle = hm_clock_ns();
    CHECK(cu.cuDeviceGet(&device, 0));
    CHECK(cu.cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cu.cuCtxSetCurrent(context));
    hm_print_value("context_init", middle - start);
    hm_print_value("context_make", hm_clock_ns() - middle);
    hm_print_value("context", hm_clock_ns() - start);
}

int
main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    pthread_t beside;

    if (strcmp(mode, "--nvml") == 0) {
        ask_nvml(NULL);
        print_nvml();
    } else if (strcmp(mode, "--nvml-beside") == 0) {
        if (pthread_create(&beside, NULL, ask_nvml, NULL) != 0)
            hm_die("no second thread");
        make_context();
        pthread_join(beside, NULL);
        print_nvml();
    } else {
        make_context();
    }
    if (mode[0] == '\0') {
        CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        hm_kernels_load(&kernels);
        make_graph();
        for (int i = 0; i < 20000; i++)
            launch();
        settle();
        hm_series("malloc_free_4KiB", 31, 64, malloc_4k, settle, 0);
        hm_series("malloc_free_64MiB", 31, 32, malloc_64m, settle, 0);
        hm_series("malloc_async_free_async_1MiB", 31, 2000, malloc_async_1m, NULL,
                  0); /* a sync empties the pool */
        hm_series("mem_get_info", 31, 500, mem_get_info, NULL, 0);
        hm_series("launch_throughput", 41, 5000, launch, settle, 1);
        hm_series("launch_sync", 31, 500, launch_sync, settle, 0);
        hm_series("graph_launch_50_nodes", 31, 50, graph_launch, settle, 0);
    }
    hm_print_end();
    return 0;
}
