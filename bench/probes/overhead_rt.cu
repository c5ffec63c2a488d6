/*
 * What the calls of a runtime-API program cost: overhead_rt [--context-only]. Static cudart, one
 * JSON object of ns.
 *
 * The figures of the issue's bars come from here; overhead.c is the same through the driver API.
 */
#include <cstring>
#include <cuda_runtime.h>

#include "batches.h"

#define RT(call)                                                                         \
    do {                                                                                 \
        cudaError_t code_ = (call);                                                      \
        if (code_ != cudaSuccess) {                                                      \
            fprintf(stderr, "%s:%d: %s: %d %s\n", __FILE__, __LINE__, #call, (int)code_, \
                    cudaGetErrorName(code_));                                            \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

__global__ void
nothing(void)
{
}

static void *block;
static cudaStream_t stream;
static cudaGraphExec_t graph;

static void
settle(void)
{
    RT(cudaDeviceSynchronize());
}

static void
malloc_4k(void)
{
    RT(cudaMalloc(&block, 4096));
    RT(cudaFree(block));
}

static void
malloc_64m(void)
{
    RT(cudaMalloc(&block, 64 << 20));
    RT(cudaFree(block));
}

static void
malloc_async_1m(void)
{
    RT(cudaMallocAsync(&block, 1 << 20, stream));
    RT(cudaFreeAsync(block, stream));
}

static void
mem_get_info(void)
{
    size_t free_bytes, total_bytes;

    RT(cudaMemGetInfo(&free_bytes, &total_bytes));
}

static void
launch(void)
{
    nothing<<<1, 1, 0, stream>>>();
}

static void
launch_sync(void)
{
    nothing<<<1, 1, 0, stream>>>();
    RT(cudaStreamSynchronize(stream));
}

static void
graph_launch(void)
{
    RT(cudaGraphLaunch(graph, stream));
}

static void
make_graph(void)
{
    cudaGraph_t made;

    RT(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < 50; i++)
        nothing<<<1, 1, 0, stream>>>();
    RT(cudaStreamEndCapture(stream, &made));
    RT(cudaGraphInstantiate(&graph, made, 0));
}

int
main(int argc, char **argv)
{
    double start = hm_clock_ns();

    RT(cudaFree(0));
    hm_print_value("context", hm_clock_ns() - start);
    if (argc > 1 && strcmp(argv[1], "--context-only") == 0) {
        hm_print_end();
        return 0;
    }
    RT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
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
    RT(cudaGetLastError());
    hm_print_end();
    return 0;
}
