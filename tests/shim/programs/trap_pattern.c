/* Threads that write patterns by every route, and say what there is in the end: the same, whatever the gate does. One
 * hears a line before each of its STEPS steps, so that it has not ended before as many slots have begun. */
#include "trap.h"

#define WRITERS 4
#define BUFFER 65536
#define WRITES 1500
#define STEPS 15

struct writer {
    pthread_t thread;
    CUstream stream;
    CUdeviceptr buffer;
    unsigned int seed;
    uint64_t sum;
};

static void
fill(CUstream stream, CUdeviceptr address, uint32_t value, uint64_t count)
{
    void *arguments[] = {&address, &value, &count};

    CHECK(cuLaunchKernel(fill_function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
}

/* One write somewhere in the buffer, from somewhere in it, by one of the routes. */
static void
write_once(struct writer *writer)
{
    uint64_t count = 1 + (uint64_t)rand_r(&writer->seed) % (BUFFER / 4);
    CUdeviceptr to = writer->buffer + (uint64_t)rand_r(&writer->seed) % (BUFFER / 2),
                from = to + count < writer->buffer + BUFFER / 2 ? to + count : writer->buffer;
    uint32_t value = (uint32_t)rand_r(&writer->seed) & 0xff;
    CUgraphExec exec;
    CUgraph graph;

    switch (rand_r(&writer->seed) % 8) {
    case 0:
        CHECK(cuMemsetD8Async(to, (unsigned char)value, count, writer->stream));
        break;
    case 1:
        if (from >= to + count)
            CHECK(cuMemcpyDtoDAsync(to, from, count, writer->stream));
        break;
    case 2:
        CHECK(cuStreamBeginCapture(writer->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        fill(writer->stream, to, value, count);
        fill(writer->stream, to + count / 2, value ^ 0xff, 1);
        CHECK(cuStreamEndCapture(writer->stream, &graph));
        CHECK(cuGraphInstantiate(&exec, graph, 0));
        CHECK(cuGraphLaunch(exec, writer->stream));
        CHECK(cuGraphExecDestroy(exec));
        CHECK(cuGraphDestroy(graph));
        break;
    default:
        fill(writer->stream, to, value, count);
    }
}

static void *
write_all(void *parameter)
{
    static unsigned char copies[WRITERS][BUFFER];
    struct writer *writer = parameter;
    unsigned char *copy = copies[writer->seed % WRITERS];
    bool stepwise = writer->seed == 0;

    CHECK(cuCtxSetCurrent(primary));
    for (int i = 0; i < WRITES; i++) {
        if (stepwise && i % (WRITES / STEPS) == 0)
            hear();
        write_once(writer);
    }
    CHECK(cuStreamSynchronize(writer->stream));
    CHECK(cuMemcpyDtoH(copy, writer->buffer, BUFFER));
    for (int i = 0; i < BUFFER; i++)
        writer->sum = writer->sum * 31 + copy[i];
    return NULL;
}

int
main(void)
{
    struct writer writers[WRITERS];

    begin();
    say("ready", 0);
    hear();
    for (unsigned int i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){.stream = make_stream(CU_STREAM_NON_BLOCKING), .seed = i};
        CHECK(cuMemAlloc(&writers[i].buffer, BUFFER));
        CHECK(cuMemsetD8(writers[i].buffer, 0, BUFFER));
    }
    for (int i = 0; i < WRITERS; i++)
        writers[i].thread = begin_thread(write_all, &writers[i]);
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
        say("sum", writers[i].sum);
    }
    return 0;
}
