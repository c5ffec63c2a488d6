/*
 * Memory that graphs allocate, at each point where what the device's graph pool holds may change.
 * graph_steps nodes|children|fill|capture|sharing|plain
 */
#include "steps.h"

static CUstream stream, other;
static CUfunction work;

static CUgraphNode
add_alloc(CUgraph graph, const CUgraphNode *after, size_t bytes, CUdeviceptr *address)
{
    CUDA_MEM_ALLOC_NODE_PARAMS params = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}},
        .bytesize = bytes};
    CUgraphNode node;

    CHECK(cuGraphAddMemAllocNode(&node, graph, after, after != NULL, &params));
    *address = params.dptr;
    return node;
}

/* count times: allocate, and free again if told to, one after the other. */
static CUgraph
make_graph(size_t bytes, int count, int frees, CUdeviceptr *address)
{
    CUgraphNode last;
    CUgraph graph;

    CHECK(cuGraphCreate(&graph, 0));
    for (int i = 0; i < count; i++) {
        last = add_alloc(graph, i > 0 ? &last : NULL, bytes, address);
        if (frees) {
            CUgraphNode alloc = last;

            CHECK(cuGraphAddMemFreeNode(&last, graph, &alloc, 1, *address));
        }
    }
    return graph;
}

static CUgraphExec
instantiate(CUgraph graph)
{
    CUgraphExec exec;

    CHECK(cuGraphInstantiate(&exec, graph, 0));
    return exec;
}

static void
launch(CUgraphExec exec, CUstream on)
{
    CHECK(cuGraphLaunch(exec, on));
    CHECK(cuStreamSynchronize(on));
}

static void
nodes(void)
{
    CUdeviceptr address, kept;
    CUgraph graph = make_graph(100 * MIB, 1, 1, &address), keeps;
    CUgraphExec exec = instantiate(graph), keeper;

    stop("instantiated");
    launch(exec, stream);
    stop("launched");
    launch(exec, stream);
    stop("launched-again");
    CHECK(cuDeviceGraphMemTrim(device));
    stop_silently("just-trimmed");
    stop("trimmed");
    CHECK(cuGraphUpload(exec, stream));
    CHECK(cuStreamSynchronize(stream));
    stop("uploaded");
    launch(exec, other);
    stop("other-stream");
    keeps = make_graph(64 * MIB, 1, 0, &kept);
    keeper = instantiate(keeps);
    launch(keeper, stream);
    stop("kept");
    CHECK(cuGraphExecDestroy(exec));
    CHECK(cuGraphDestroy(graph));
    CHECK(cuDeviceGraphMemTrim(device));
    stop("kept-alone");
    CHECK(cuMemFreeAsync(kept, stream));
    CHECK(cuStreamSynchronize(stream));
    CHECK(cuGraphExecDestroy(keeper));
    CHECK(cuGraphDestroy(keeps));
    CHECK(cuDeviceGraphMemTrim(device));
    stop("gone");
}

/* Memory nodes in a child graph, which its parent owns. */
static void
children(void)
{
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_GRAPH};
    CUdeviceptr address;
    CUgraphNode node;
    CUgraphExec exec;
    CUgraph graph;

    CHECK(cuGraphCreate(&graph, 0));
    params.graph.graph = make_graph(100 * MIB, 1, 1, &address);
    params.graph.ownership = CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE;
    CHECK(cuGraphAddNode(&node, graph, NULL, NULL, 0, &params));
    exec = instantiate(graph);
    launch(exec, stream);
    stop("child-launched");
    CHECK(cuGraphExecDestroy(exec));
    CHECK(cuDeviceGraphMemTrim(device));
    stop("child-gone");
}

/* Graphs of 512 MiB that keep what they allocate, until there is no room. */
static void
fill(void)
{
    CUDA_GRAPH_INSTANTIATE_PARAMS upload = {.flags = CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD};
    CUdeviceptr address[64], extra;
    CUgraphExec exec[64], over;
    CUresult result = CUDA_SUCCESS;
    unsigned int count = 0;
    CUgraph graph;

    while (count < 64) {
        exec[count] = instantiate(make_graph(512 * MIB, 1, 0, &address[count]));
        result = cuGraphLaunch(exec[count], stream);
        if (result != CUDA_SUCCESS)
            break;
        CHECK(cuStreamSynchronize(stream));
        count++;
    }
    answer("launch-over", result);
    answer("upload-over", cuGraphUpload(exec[count], stream));
    stop("full");
    graph = make_graph(512 * MIB, 1, 1, &extra);
    upload.hUploadStream = stream;
    answer("instantiate-over", cuGraphInstantiateWithParams(&over, graph, &upload));
    CHECK(cuMemFreeAsync(address[--count], stream));
    CHECK(cuStreamSynchronize(stream));
    answer("launch-after-free", cuGraphLaunch(exec[count + 1], stream));
    CHECK(cuStreamSynchronize(stream));
    stop("full-again");
}

/* A captured cuMemAllocAsync becomes a memory node, and nothing is charged for it before a launch. */
static void
capture(void)
{
    CUdeviceptr address;
    CUgraphExec exec;
    CUgraph graph;

    CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK(cuMemAllocAsync(&address, 100 * MIB, stream));
    CHECK(cuMemFreeAsync(address, stream));
    CHECK(cuDeviceGraphMemTrim(device));
    CHECK(cuStreamEndCapture(stream, &graph));
    stop("captured");
    exec = instantiate(graph);
    launch(exec, stream);
    stop("capture-launched");
    CHECK(cuGraphExecDestroy(exec));
    CHECK(cuDeviceGraphMemTrim(device));
    stop("capture-gone");
}

/* One thread waits so many ns; the simulated driver knows the kernel by its name. */
static const char spin[] = ".version 6.0\n.target sm_50\n.address_size 64\n\n"
                           ".visible .entry hm_spin(.param .u64 p_ns)\n{\n"
                           "    .reg .pred %p<2>;\n"
                           "    .reg .b64 %rd<5>;\n"
                           "    ld.param.u64 %rd1, [p_ns];\n"
                           "    mov.u64 %rd2, %globaltimer;\n"
                           "WAIT:\n"
                           "    mov.u64 %rd3, %globaltimer;\n"
                           "    sub.u64 %rd4, %rd3, %rd2;\n"
                           "    setp.lt.u64 %p1, %rd4, %rd1;\n"
                           "    @%p1 bra WAIT;\n"
                           "    ret;\n}\n";

/* Allocate, work for a while, free. */
static CUgraphExec
working_graph(size_t bytes)
{
    unsigned long long ns = 30000000;
    void *arguments[] = {&ns};
    CUDA_KERNEL_NODE_PARAMS params = {.func = work,
                                      .gridDimX = 1,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 1,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .kernelParams = arguments};
    CUgraphNode alloc, kernel, gone;
    CUdeviceptr address;
    CUgraph graph;

    CHECK(cuGraphCreate(&graph, 0));
    alloc = add_alloc(graph, NULL, bytes, &address);
    CHECK(cuGraphAddKernelNode(&kernel, graph, &alloc, 1, &params));
    CHECK(cuGraphAddMemFreeNode(&gone, graph, &kernel, 1, address));
    return instantiate(graph);
}

/* Two graphs in one stream share memory, though the first still runs; so do allocations that follow each other. */
static void
sharing(void)
{
    CUgraphExec one, two, many;
    CUdeviceptr address;

    one = working_graph(512 * MIB);
    two = working_graph(512 * MIB);
    many = instantiate(make_graph(256 * MIB, 16, 1, &address));
    for (int i = 0; i < 4; i++) {
        answer("one", cuGraphLaunch(one, stream));
        usleep(5000); /* it runs now */
        answer("two", cuGraphLaunch(two, stream));
    }
    CHECK(cuStreamSynchronize(stream));
    stop("shared");
    answer("many", cuGraphLaunch(many, stream));
    CHECK(cuStreamSynchronize(stream));
    stop("shared-by-many");
}

/* Graphs without memory nodes beside one with. */
static void
plain(void)
{
    CUgraphNode node;
    CUdeviceptr address;
    CUgraphExec exec, memory;
    CUgraph graph;

    CHECK(cuGraphCreate(&graph, 0));
    CHECK(cuGraphAddEmptyNode(&node, graph, NULL, 0));
    exec = instantiate(graph);
    launch(exec, stream);
    stop("plain");
    memory = instantiate(make_graph(100 * MIB, 1, 1, &address));
    launch(exec, stream);
    stop("plain-beside-memory");
    CHECK(cuGraphExecDestroy(memory));
    CHECK(cuGraphExecDestroy(exec));
    answer("destroyed-nothing", cuGraphInstantiate(&exec, NULL, 0));
}

int
main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "nodes";
    CUmodule module;

    start();
    CHECK(cuModuleLoadData(&module, spin));
    CHECK(cuModuleGetFunction(&work, module, "hm_spin"));
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CHECK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    free_at_start = free_bytes();
    if (strcmp(what, "nodes") == 0)
        nodes();
    else if (strcmp(what, "children") == 0)
        children();
    else if (strcmp(what, "fill") == 0)
        fill();
    else if (strcmp(what, "capture") == 0)
        capture();
    else if (strcmp(what, "sharing") == 0)
        sharing();
    else
        plain();
    return 0;
}
