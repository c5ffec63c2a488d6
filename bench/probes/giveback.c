/*
 * Which calls make a stream-ordered pool give back what it holds unused, printed as JSON: the calls that pool_charge.c has
 * to know of. A block is freed in its stream, whose work is over, and then one call is made.
 *
 *     cc -O2 -I<headers> giveback.c -o giveback -ldl && ./giveback
 */
#include "driver.h"

#include <stdbool.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define BLOCK (64 * MIB)

static void *library;
static CUstream stream, other;
static CUevent event;
static CUmemoryPool pool;
static CUdeviceptr linear;
static CUgraphExec empty;
static char host[4096];

/* Entries that driver.h does not have. */
#define EXTRA(name) ((__typeof__(&name))dlsym(library, HM_TEXT(name)))

static size_t
reserved(void)
{
    cuuint64_t bytes = 0;

    CHECK(cu.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes));
    return bytes;
}

static void
nothing(void)
{
}

static void
stream_query(void)
{
    EXTRA(cuStreamQuery)(stream);
}

static void
event_query(void)
{
    EXTRA(cuEventQuery)(event);
}

static void
stream_synchronize(void)
{
    CHECK(cu.cuStreamSynchronize(stream));
}

static void
other_stream_synchronize(void)
{
    CHECK(cu.cuStreamSynchronize(other));
}

static void
event_synchronize(void)
{
    CHECK(cu.cuEventSynchronize(event));
}

static void
ctx_synchronize(void)
{
    CHECK(cu.cuCtxSynchronize());
}

static void
linear_alloc(void)
{
    CUdeviceptr address;

    CHECK(cu.cuMemAlloc(&address, 4 * MIB)); /* stays */
}

static void
linear_free(void)
{
    CHECK(cu.cuMemFree(linear));
    linear = 0;
}

static void
copy_to_host(void)
{
    CHECK(cu.cuMemcpyDtoH(host, linear, sizeof(host)));
}

static void
copy_to_device(void)
{
    CHECK(cu.cuMemcpyHtoD(linear, host, sizeof(host)));
}

static void
copy_in_stream(void)
{
    CHECK(cu.cuMemcpyDtoHAsync(host, linear, sizeof(host), other));
}

static void
set_memory(void)
{
    CHECK(cu.cuMemsetD32(linear, 0, 1024));
}

static void
host_alloc_free(void)
{
    void *pinned;

    CHECK(EXTRA(cuMemHostAlloc)(&pinned, 4096, 0));
    CHECK(EXTRA(cuMemFreeHost)(pinned));
}

static void
pool_alloc_free(void)
{
    CUdeviceptr address;

    CHECK(cu.cuMemAllocAsync(&address, 4096, stream));
    CHECK(cu.cuMemFreeAsync(address, stream));
}

static void
pool_alloc_larger(void)
{
    CUdeviceptr address;

    CHECK(cu.cuMemAllocAsync(&address, 4 * BLOCK, stream));
    CHECK(cu.cuMemFreeAsync(address, stream));
}

static void
stream_make_destroy(void)
{
    CUstream made;

    CHECK(cu.cuStreamCreate(&made, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuStreamDestroy(made));
}

static void
event_make_destroy(void)
{
    CUevent made;

    CHECK(cu.cuEventCreate(&made, CU_EVENT_DEFAULT));
    CHECK(cu.cuEventDestroy(made));
}

static void
mem_get_info(void)
{
    size_t free_bytes, total;

    CHECK(cu.cuMemGetInfo(&free_bytes, &total));
}

static void
graph_launch(void)
{
    CHECK(cu.cuGraphLaunch(empty, other));
}

static void
pool_make_destroy(void)
{
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemoryPool made;

    CHECK(cu.cuMemPoolCreate(&made, &props));
    CHECK(cu.cuMemPoolDestroy(made));
}

static const struct {
    const char *name;
    void (*run)(void);
} calls[] = {
    {"nothing", nothing},
    {"cuStreamQuery", stream_query},
    {"cuEventQuery", event_query},
    {"cuStreamSynchronize", stream_synchronize},
    {"cuStreamSynchronize of another", other_stream_synchronize},
    {"cuEventSynchronize", event_synchronize},
    {"cuCtxSynchronize", ctx_synchronize},
    {"cuMemAlloc", linear_alloc},
    {"cuMemFree", linear_free},
    {"cuMemcpyDtoH", copy_to_host},
    {"cuMemcpyHtoD", copy_to_device},
    {"cuMemcpyDtoHAsync", copy_in_stream},
    {"cuMemsetD32", set_memory},
    {"cuMemHostAlloc, cuMemFreeHost", host_alloc_free},
    {"cuMemAllocAsync, cuMemFreeAsync", pool_alloc_free},
    {"cuMemAllocAsync of more, cuMemFreeAsync", pool_alloc_larger},
    {"cuStreamCreate, cuStreamDestroy", stream_make_destroy},
    {"cuEventCreate, cuEventDestroy", event_make_destroy},
    {"cuMemGetInfo", mem_get_info},
    {"cuGraphLaunch", graph_launch},
    {"cuMemPoolCreate, cuMemPoolDestroy", pool_make_destroy},
};

int
main(void)
{
    size_t count = sizeof(calls) / sizeof(calls[0]);
    CUgraphNode node;
    CUdevice device;
    CUgraph graph;

    hm_start(&device);
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(cu.cuDeviceGetDefaultMemPool(&pool, device));
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuEventCreate(&event, CU_EVENT_DEFAULT));
    CHECK(cu.cuGraphCreate(&graph, 0));
    CHECK(EXTRA(cuGraphAddEmptyNode)(&node, graph, NULL, 0));
    CHECK(cu.cuGraphInstantiateWithFlags(&empty, graph, 0));
    printf("[");
    for (size_t i = 0; i < count; i++) {
        CUdeviceptr block;
        size_t before, after;
        uint64_t start_ns, took_ns;

        if (linear == 0)
            CHECK(cu.cuMemAlloc(&linear, 4 * MIB));
        CHECK(cu.cuCtxSynchronize());
        CHECK(cu.cuMemAllocAsync(&block, BLOCK, stream));
        CHECK(cu.cuMemFreeAsync(block, stream));
        CHECK(cu.cuEventRecord(event, stream));
        usleep(20000); /* long over */
        before = reserved();
        start_ns = hm_now_ns();
        calls[i].run();
        took_ns = hm_now_ns() - start_ns;
        after = reserved();
        printf(
            "%s\n {\"call\": \"%s\", \"before_mib\": %zu, \"after_mib\": %zu, \"took_us\": %llu}",
            i > 0 ? "," : "", calls[i].name, before / MIB, after / MIB,
            (unsigned long long)took_ns / 1000);
    }
    printf("\n]\n");
    return 0;
}
