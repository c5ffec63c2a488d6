/*
 * Calls what launches, fills and copies, by name and through one route: linked, handle (dlsym) or get
 * (cuGetProcAddress_v2). It is told on standard input what to do:
 *
 *   WAY NAME      a call outside of a capture (plain), in one (own, joined, per-thread), while another stream captures
 *                 (beside), or on stream NULL while the thread's own stream captures (default). Four answers, each but
 *                 the first after another line: "ready"; the call's code; what was captured, or the code of that; what
 *                 memory holds at the end, where the graph has been launched too.
 *   sides FROM TO which memory described copies copy: enum CUmemorytype
 *   kernel N      1: launches name a CUkernel instead of a CUfunction
 *   memory N      1: the graph that is launched allocates memory
 *   cooperate N   1: what cuLaunchKernelEx launches is cooperative
 */
#include "passed_things.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES 8192
#define ROW_BYTES 4096 /* of things.row */
#define WIDTH 64       /* of things.array */
#define HEIGHT 4       /* of described copies */
#define NEWEST 13000

#define CHECK(call)                                                  \
    do {                                                             \
        CUresult result_ = (call);                                   \
        if (result_ != CUDA_SUCCESS) {                               \
            fprintf(stderr, "%s answers %d\n", #call, (int)result_); \
            exit(1);                                                 \
        }                                                            \
    } while (0)

/* Unlike passed_code's kernel, this one can be seen to have run. */
static const char fill_code[] =
    ".version 7.0\n.target sm_52\n.address_size 64\n"
    ".visible .entry hm_fill(.param .u64 a, .param .u32 v, .param .u64 n)\n{\n ret;\n}\n";
static CUdeviceptr fill_address;
static uint32_t fill_value = 0x5a;
static uint64_t fill_count = 1000;
static void *fill_arguments[] = {&fill_address, &fill_value, &fill_count};
#define kernel_arguments fill_arguments /* as the generated calls name them */

#define CALL(name, base, ...)                    \
    static __typeof__(&name) pointer_##name;     \
    static int call_##name(void)                 \
    {                                            \
        return (int)pointer_##name(__VA_ARGS__); \
    }
#include "launch_generated.h"
#undef CALL

static const struct call {
    const char *name, *base;
    int (*call)(void);
    void **pointer, *linked;
} calls[] = {
#define CALL(name, base, ...) {#name, base, call_##name, (void **)&pointer_##name, (void *)&name},
#include "launch_generated.h"
#undef CALL
};
#define CALLS (sizeof(calls) / sizeof(calls[0]))

/* cuGetProcAddress knows a name by its version of CUDA and by the kind of default stream. */
static void *
get(void *driver, const struct call *call)
{
    void *wanted = dlsym(driver, call->name), *found;
    CUdriverProcAddressQueryResult status;

    for (int version = NEWEST; version >= 2000; version -= 10)
        for (cuuint64_t flags = 0; flags <= 2; flags++)
            if (cuGetProcAddress_v2(call->base, &found, version, flags, &status) == CUDA_SUCCESS &&
                found == wanted)
                return found;
    return NULL;
}

static void
look_up(const char *route)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);

    for (size_t i = 0; i < CALLS; i++) {
        if (strcmp(route, "linked") == 0)
            *calls[i].pointer = calls[i].linked;
        else if (strcmp(route, "handle") == 0)
            *calls[i].pointer = dlsym(driver, calls[i].name);
        else
            *calls[i].pointer = get(driver, &calls[i]);
        if (*calls[i].pointer == NULL) {
            fprintf(stderr, "%s is not to be had by %s\n", calls[i].name, route);
            exit(1);
        }
    }
}

static CUfunction fill;
static CUkernel fill_kernel;
static CUstream origin, made;
static CUevent forked, joined;
static CUlaunchAttribute cooperative = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                                        .value.cooperative = 1};

static void
make(void)
{
    CUmodule module;
    CUlibrary library;

    passed_make();
    passed_renew();
    CHECK(cuModuleLoadData(&module, fill_code));
    CHECK(cuModuleGetFunction(&fill, module, "hm_fill"));
    CHECK(cuLibraryLoadData(&library, fill_code, NULL, NULL, 0, NULL, NULL, 0));
    CHECK(cuLibraryGetKernel(&fill_kernel, library, "hm_fill"));
    CHECK(cuStreamCreate(&origin, CU_STREAM_NON_BLOCKING));
    CHECK(cuEventCreate(&forked, CU_EVENT_DISABLE_TIMING));
    CHECK(cuEventCreate(&joined, CU_EVENT_DISABLE_TIMING));
    made = things.stream;
    things.function = fill;
    fill_address = things.other;
    copy_2d.WidthInBytes = copy_2d_v1.WidthInBytes = WIDTH;
    copy_3d.WidthInBytes = copy_3d_v1.WidthInBytes = WIDTH;
}

static void
set_sides(CUmemorytype from, CUmemorytype to)
{
#define SET(copy)                                                           \
    copy.srcMemoryType = from, copy.dstMemoryType = to;                     \
    copy.srcHost = things.host, copy.dstHost = (char *)things.host + BYTES; \
    copy.srcArray = copy.dstArray = things.array
    SET(copy_2d);
    SET(copy_3d);
    SET(copy_2d_v1);
    SET(copy_3d_v1);
#undef SET
}

/* The part of things.array that calls change. */
static void
copy_array(unsigned char *bytes, bool in)
{
    CUDA_MEMCPY2D copy = {.srcMemoryType = in ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_ARRAY,
                          .srcHost = bytes,
                          .srcArray = things.array,
                          .dstMemoryType = in ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_HOST,
                          .dstHost = bytes,
                          .dstArray = things.array,
                          .WidthInBytes = WIDTH,
                          .Height = HEIGHT};

    CHECK(cuMemcpy2D_v2(&copy));
}

/* Everywhere something else, so that what a call changes can be seen. Nothing here waits at a gate. */
static void
prepare(void)
{
    unsigned char bytes[BYTES];

    CHECK(cuCtxSynchronize());
    for (int i = 0; i < BYTES; i++) {
        bytes[i] = (unsigned char)(i * 7 + i / 256);
        ((unsigned char *)things.host)[i] = (unsigned char)(i * 5 + 1);
    }
    memset((char *)things.host + BYTES, 0, BYTES);
    CHECK(cuMemcpyHtoD_v2(things.device, bytes, BYTES));
    CHECK(cuMemcpyHtoD_v2(things.other, bytes + 1, BYTES - 1));
    CHECK(cuMemcpyHtoA_v2(things.row, 0, bytes + 2, ROW_BYTES));
    copy_array(bytes + 3, true);
}

static void
add(uint64_t *hash, const void *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        *hash = (*hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
}

static uint64_t
memory(void)
{
    uint64_t hash = 14695981039346656037u;
    unsigned char bytes[BYTES];

    CHECK(cuCtxSynchronize());
    add(&hash, things.host, (size_t)BYTES * 2);
    CHECK(cuMemcpyDtoH_v2(bytes, things.device, BYTES));
    add(&hash, bytes, BYTES);
    CHECK(cuMemcpyDtoH_v2(bytes, things.other, BYTES));
    add(&hash, bytes, BYTES);
    CHECK(cuMemcpyAtoH_v2(bytes, things.row, 0, ROW_BYTES));
    add(&hash, bytes, ROW_BYTES);
    copy_array(bytes, false);
    add(&hash, bytes, WIDTH * HEIGHT);
    return hash;
}

/* The stream that captures, NULL if none does. things.stream is the one that is launched on. */
static CUstream
begin(const char *way)
{
    CUstream stream = strcmp(way, "plain") == 0 ? NULL : origin;

    things.stream = made;
    if (strcmp(way, "own") == 0)
        stream = made;
    if (strcmp(way, "per-thread") == 0)
        stream = things.stream = CU_STREAM_PER_THREAD;
    if (strcmp(way, "default") == 0)
        stream = CU_STREAM_PER_THREAD, things.stream = NULL;
    launch.hStream = things.stream;
    if (stream == NULL)
        return NULL;
    CHECK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    if (strcmp(way, "joined") == 0) {
        CHECK(cuEventRecord(forked, origin));
        CHECK(cuStreamWaitEvent(made, forked, 0));
    }
    return stream;
}

static CUresult
end(const char *way, CUstream stream, CUgraph *graph)
{
    *graph = NULL;

    if (strcmp(way, "joined") == 0) {
        CHECK(cuEventRecord(joined, made));
        CHECK(cuStreamWaitEvent(origin, joined, 0));
    }
    return stream != NULL ? cuStreamEndCapture(stream, graph) : CUDA_SUCCESS;
}

static void
print_node(CUgraphNode node)
{
    CUgraphNodeType type;
    CUDA_KERNEL_NODE_PARAMS kernel;
    CUDA_MEMSET_NODE_PARAMS set;
    CUDA_MEMCPY3D copy;

    CHECK(cuGraphNodeGetType(node, &type));
    printf("%d", (int)type);
    if (type == CU_GRAPH_NODE_TYPE_KERNEL) {
        CHECK(cuGraphKernelNodeGetParams_v2(node, &kernel));
        printf(":%u,%u,%d", kernel.gridDimX, kernel.blockDimX,
               **(CUdeviceptr **)kernel.kernelParams == fill_address);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMSET) {
        CHECK(cuGraphMemsetNodeGetParams(node, &set));
        printf(":%u,%u,%zu,%zu", set.value, set.elementSize, set.width, set.height);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
        CHECK(cuGraphMemcpyNodeGetParams(node, &copy));
        printf(":%d,%d,%zu,%zu", (int)copy.srcMemoryType, (int)copy.dstMemoryType,
               copy.WidthInBytes, copy.Height);
    }
    printf(" ");
}

static void
print_graph(CUgraph graph)
{
    CUgraphNode nodes[8];
    size_t count = 8;

    if (graph != NULL)
        CHECK(cuGraphGetNodes(graph, nodes, &count));
    for (size_t i = 0; graph != NULL && i < count; i++)
        print_node(nodes[i]);
    printf("\n");
}

static void
run(CUgraph graph)
{
    CUgraphExec exec;

    if (graph == NULL)
        return;
    CHECK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    CHECK(cuGraphLaunch(exec, made));
    CHECK(cuCtxSynchronize());
    CHECK(cuGraphExecDestroy(exec));
    CHECK(cuGraphDestroy(graph));
}

static void
set_memory(bool allocates)
{
    static CUgraphExec plain, memory;
    CUgraphNode take, give;
    CUgraph graph;

    if (plain == NULL)
        plain = things.exec;
    if (memory != NULL)
        CHECK(cuGraphExecDestroy(memory));
    memory = NULL;
    if (allocates) {
        CHECK(cuGraphCreate(&graph, 0));
        CHECK(cuGraphAddMemAllocNode(&take, graph, NULL, 0, &take_params));
        CHECK(cuGraphAddMemFreeNode(&give, graph, &take, 1, take_params.dptr));
        CHECK(cuGraphInstantiateWithFlags(&memory, graph, 0));
    }
    things.exec = allocates ? memory : plain;
}

static void
wait_for_line(void)
{
    char line[64];

    if (fgets(line, sizeof(line), stdin) == NULL)
        exit(0);
}

static void
one_call(const char *way, const char *name)
{
    CUstream stream;
    CUgraph graph;
    CUresult result;

    prepare();
    stream = begin(way);
    printf("ready\n");
    wait_for_line();
    for (size_t i = 0; i < CALLS; i++)
        if (strcmp(calls[i].name, name) == 0)
            printf("%d\n", calls[i].call());
    wait_for_line();
    result = end(way, stream, &graph);
    if (result == CUDA_SUCCESS)
        print_graph(graph);
    else
        printf("%d\n", (int)result);
    wait_for_line();
    run(graph);
    printf("%llx\n", (unsigned long long)memory());
}

int
main(int count, char **argument)
{
    char line[128], what[32], name[64];
    int from, to;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count < 2)
        return 2;
    CHECK(cuInit(0));
    make();
    set_sides(CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_DEVICE);
    look_up(argument[1]);
    while (fgets(line, sizeof(line), stdin) != NULL) {
        if (sscanf(line, "sides %d %d", &from, &to) == 2)
            set_sides((CUmemorytype)from, (CUmemorytype)to);
        else if (sscanf(line, "kernel %d", &to) == 1)
            things.function = to ? (CUfunction)fill_kernel : fill;
        else if (sscanf(line, "memory %d", &to) == 1)
            set_memory(to);
        else if (sscanf(line, "cooperate %d", &to) == 1)
            launch.attrs = &cooperative, launch.numAttrs = (unsigned int)to;
        else if (sscanf(line, "%31s %63s", what, name) == 2)
            one_call(what, name);
    }
    return 0;
}
