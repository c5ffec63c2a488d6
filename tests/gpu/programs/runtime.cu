/*
 * The runtime API with a static cudart: memory of every kind, streams, events, graphs, a
 * cooperative launch.
 */
#include <cooperative_groups.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <vector>

#define RT(call)                                                                         \
    do {                                                                                 \
        cudaError_t code_ = (call);                                                      \
        if (code_ != cudaSuccess) {                                                      \
            fprintf(stderr, "%s:%d: %s: %d %s\n", __FILE__, __LINE__, #call, (int)code_, \
                    cudaGetErrorName(code_));                                            \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

static const int words = 1 << 20;

__global__ void
mix(uint32_t *data, uint32_t seed, int n)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        data[i] = (data[i] ^ seed) * 2654435761u + (uint32_t)i;
}

__global__ void
together(uint32_t *data, int n)
{
    for (int step = 0; step < 3; step++) {
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
            data[i] = data[i] * 3u + 1u;
        cooperative_groups::this_grid().sync();
    }
}

static void
report(const char *name, const uint32_t *device)
{
    std::vector<uint32_t> host(words);
    uint64_t hash = 0xcbf29ce484222325u;

    RT(cudaMemcpy(host.data(), device, words * 4ull, cudaMemcpyDefault));
    for (uint32_t word : host)
        hash = (hash ^ word) * 0x100000001b3u;
    printf("RESULT runtime %s=%016llx\n", name, (unsigned long long)hash);
}

static void
graphs(uint32_t *data, cudaStream_t stream)
{
    cudaGraph_t graph;
    cudaGraphExec_t made;
    void *scratch;

    RT(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    RT(cudaMallocAsync(&scratch, words * 4ull, stream));
    RT(cudaMemcpyAsync(scratch, data, words * 4ull, cudaMemcpyDeviceToDevice, stream));
    mix<<<256, 256, 0, stream>>>((uint32_t *)scratch, 99, words);
    RT(cudaMemcpyAsync(data, scratch, words * 4ull, cudaMemcpyDeviceToDevice, stream));
    RT(cudaFreeAsync(scratch, stream));
    RT(cudaStreamEndCapture(stream, &graph));
    RT(cudaGraphInstantiate(&made, graph, 0));
    for (int i = 0; i < 5; i++)
        RT(cudaGraphLaunch(made, stream));
    RT(cudaStreamSynchronize(stream));
    RT(cudaGraphExecDestroy(made));
    RT(cudaGraphDestroy(graph));
    report("graph", data);
}

int
main()
{
    uint32_t *plain, *ordered, *managed, *pitched;
    size_t pitch, free_bytes, total_bytes;
    cudaStream_t stream;
    cudaEvent_t before, after;
    cudaDeviceProp properties;
    int n = words;
    void *arguments[] = {&plain, &n};

    RT(cudaGetDeviceProperties(&properties, 0));
    printf("RESULT runtime device=%s processors=%d\n", properties.name,
           properties.multiProcessorCount);
    RT(cudaStreamCreate(&stream));
    RT(cudaEventCreate(&before));
    RT(cudaEventCreate(&after));
    RT(cudaMalloc(&plain, words * 4ull));
    RT(cudaMemset(plain, 0, words * 4ull));
    RT(cudaEventRecord(before, stream));
    mix<<<256, 256, 0, stream>>>(plain, 1, words);
    RT(cudaEventRecord(after, stream));
    RT(cudaEventSynchronize(after));
    report("plain", plain);
    RT(cudaLaunchCooperativeKernel((void *)together, dim3(64), dim3(256), arguments, 0, stream));
    RT(cudaStreamSynchronize(stream));
    report("cooperative", plain);
    graphs(plain, stream);

    RT(cudaMallocAsync(&ordered, words * 4ull, stream));
    RT(cudaMemsetAsync(ordered, 1, words * 4ull, stream));
    mix<<<256, 256, 0, stream>>>(ordered, 2, words);
    RT(cudaStreamSynchronize(stream));
    report("ordered", ordered);
    RT(cudaFreeAsync(ordered, stream));

    RT(cudaMallocManaged(&managed, words * 4ull));
    for (int i = 0; i < words; i++)
        managed[i] = (uint32_t)i;
    mix<<<256, 256, 0, stream>>>(managed, 3, words);
    RT(cudaStreamSynchronize(stream));
    report("managed", managed);
    RT(cudaFree(managed));

    RT(cudaMallocPitch(&pitched, &pitch, 1000, 64));
    printf("RESULT runtime pitch=%zu\n", pitch);
    RT(cudaFree(pitched));
    RT(cudaMemGetInfo(&free_bytes, &total_bytes));
    printf("RESULT runtime refused=%s\n", cudaGetErrorName(cudaMalloc(&pitched, total_bytes * 2)));
    (void)cudaGetLastError();
    mix<<<256, 256, 0, stream>>>(plain, 4, words);
    RT(cudaStreamSynchronize(stream));
    report("after", plain);
    RT(cudaDeviceReset());
    RT(cudaMalloc(&plain, words * 4ull));
    RT(cudaMemset(plain, 5, words * 4ull));
    report("reset", plain);
    return 0;
}
