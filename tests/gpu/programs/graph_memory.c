/*
 * Graphs that allocate: memory nodes added by hand, and a captured cuMemAllocAsync; each launched
 * three times.
 */
#include "driver.h"

#include "kernels.h"

enum { WORDS = 1 << 20 };

static uint32_t *host;

static void
report(const char *name, int launch)
{
    printf("RESULT graph_memory %s launch=%d hash=%016llx\n", name, launch,
           (unsigned long long)hm_hash(host, WORDS * 4ull));
    memset(host, 0, WORDS * 4ull);
}

static void
run(const char *name, CUgraph graph, CUstream stream)
{
    CUgraphExec made;

    CHECK(cu.cuGraphInstantiateWithFlags(&made, graph, 0));
    for (int launch = 0; launch < 3; launch++) {
        CHECK(cu.cuGraphLaunch(made, stream));
        CHECK(cu.cuStreamSynchronize(stream));
        report(name, launch);
    }
    CHECK(cu.cuGraphExecDestroy(made));
    CHECK(cu.cuGraphDestroy(graph));
}

/*
 * alloc -> fill -> free, and a copy of the words into `keep` by a kernel argument that outlives the
 * graph's block.
 */
static CUgraph
by_nodes(const struct hm_kernels *kernels, CUdevice device, CUdeviceptr keep)
{
    CUDA_MEM_ALLOC_NODE_PARAMS want = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}},
        .bytesize = WORDS * 4ull};
    uint64_t words = WORDS;
    uint32_t value = 0xabcd0001u;
    void *in_block[] = {NULL, &value, &words}, *in_keep[] = {&keep, &value, &words};
    CUDA_KERNEL_NODE_PARAMS fill = {.func = kernels->fill,
                                    .gridDimX = 64,
                                    .gridDimY = 1,
                                    .gridDimZ = 1,
                                    .blockDimX = 256,
                                    .blockDimY = 1,
                                    .blockDimZ = 1,
                                    .kernelParams = in_block};
    CUgraphNode alloc, first, second, gone;
    CUgraph graph;

    CHECK(cu.cuGraphCreate(&graph, 0));
    CHECK(cu.cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &want));
    in_block[0] = &want.dptr;
    CHECK(cu.cuGraphAddKernelNode(&first, graph, &alloc, 1, &fill));
    fill.kernelParams = in_keep;
    CHECK(cu.cuGraphAddKernelNode(&second, graph, &first, 1, &fill));
    CHECK(cu.cuGraphAddMemFreeNode(&gone, graph, &second, 1, want.dptr));
    return graph;
}

static CUgraph
by_capture(const struct hm_kernels *kernels, CUstream stream)
{
    CUdeviceptr ptr;
    CUgraph graph;

    CHECK(cu.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK(cu.cuMemAllocAsync(&ptr, WORDS * 4ull, stream));
    CHECK(hm_launch_words(kernels->fill, stream, ptr, 0x5550001u, WORDS));
    CHECK(cu.cuMemcpyDtoHAsync(host, ptr, WORDS * 4ull, stream));
    CHECK(cu.cuMemFreeAsync(ptr, stream));
    CHECK(cu.cuStreamEndCapture(stream, &graph));
    return graph;
}

int
main(void)
{
    struct hm_kernels kernels;
    CUdevice device;
    CUdeviceptr keep;
    CUstream stream;
    cuuint64_t used = 1;

    hm_start(&device);
    host = calloc(WORDS, sizeof *host);
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    hm_kernels_load(&kernels);
    CHECK(cu.cuMemAlloc(&keep, WORDS * 4ull));

    run("capture", by_capture(&kernels, stream), stream);
    run("nodes", by_nodes(&kernels, device, keep), stream);
    printf("RESULT graph_memory keep=%016llx\n", (unsigned long long)hm_device_hash(keep, WORDS));

    CHECK(cu.cuDeviceGetGraphMemAttribute(device, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used));
    CHECK(cu.cuDeviceGraphMemTrim(device));
    printf("RESULT graph_memory used=%llu\n", (unsigned long long)used);
    return 0;
}
