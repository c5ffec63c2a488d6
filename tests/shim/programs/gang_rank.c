/*
 * One rank of a tenant that works on several devices: gang_rank FILE RANK RANKS. Each round is some work and a collective,
 * alone or in a graph. FILE holds, as u64: how many have begun a collective, after how many rounds to end, and the rounds
 * of each rank.
 */
#include "steps.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

#define BEGUN 0
#define END 1
#define ROUNDS 2
#define AHEAD 4 /* rounds that are queued */
#define WORK_NS 50000ull

static const char code[] =
    ".version 7.0\n.target sm_52\n.address_size 64\n"
    ".visible .entry hm_spin(.param .u64 ns)\n{\n ret;\n}\n"
    ".visible .entry ncclDevKernel_sim(.param .u64 a, .param .u32 n)\n{\n ret;\n}\n";
static CUfunction spin_function, collective_function;
static uint64_t *shared;
static uint32_t ranks;

static void
work(CUstream stream)
{
    uint64_t ns = WORK_NS;
    void *arguments[] = {&ns};

    CHECK(cuLaunchKernel(spin_function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
}

static void
collective(CUstream stream)
{
    uint64_t address = (uint64_t)&shared[BEGUN];
    void *arguments[] = {&address, &ranks};

    CHECK(cuLaunchKernel(collective_function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
}

static CUgraphExec
make_graph(CUstream stream)
{
    CUgraph graph;
    CUgraphExec exec;

    CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    work(stream);
    collective(stream);
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK(cuGraphInstantiate(&exec, graph, 0));
    return exec;
}

int
main(int argc, char **argv)
{
    int fd = argc == 4 ? open(argv[1], O_RDWR) : -1, rank;
    CUcontext context;
    CUgraphExec graph;
    CUmodule module;
    CUstream stream;

    if (fd < 0)
        return 2;
    rank = atoi(argv[2]);
    ranks = (uint32_t)atoi(argv[3]);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, rank));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, code));
    CHECK(cuModuleGetFunction(&spin_function, module, "hm_spin"));
    CHECK(cuModuleGetFunction(&collective_function, module, "ncclDevKernel_sim"));
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    graph = make_graph(stream);
    for (uint64_t i = 1; i <= __atomic_load_n(&shared[END], __ATOMIC_ACQUIRE); i++) {
        for (uint64_t k = (i + (uint64_t)rank) % 3; k > 0; k--)
            work(stream);
        if (i % 3 == 0)
            CHECK(cuGraphLaunch(graph, stream));
        else
            collective(stream);
        if (i % AHEAD == 0)
            CHECK(cuStreamSynchronize(stream));
        __atomic_store_n(&shared[ROUNDS + rank], i, __ATOMIC_RELEASE);
    }
    CHECK(cuStreamSynchronize(stream));
    return 0;
}
