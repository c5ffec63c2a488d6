/*
 * What threads, captures, contexts and ends of a process can do to a gate, a scenario a run:
 *
 *     gate_traps SCENARIO [ARGUMENT]
 *
 * It prints what it has done and, where the test has to do something, waits for a line on standard input.
 */
#include "steps.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/wait.h>
#include <time.h>

#define MS 1000000ull
#define SHORT_NS 20000ull /* of a kernel that gets no mark of its own once it is known */
#define LONG_NS (200 * MS)
#define ROUNDS 50
#define THREADS 64
#define WRITERS 4
#define BUFFER 65536
#define WRITES 1500
#define EXIT_CODE 7

static const char code[] = ".version 7.0\n.target sm_52\n.address_size 64\n"
                           ".visible .entry hm_spin(.param .u64 ns)\n{\n ret;\n}\n"
                           ".visible .entry hm_fill(.param .u64 a, .param .u32 v, .param .u64 n)\n"
                           "{\n ret;\n}\n";
static const char *argument = "";
static CUcontext primary;
static CUfunction spin_function, fill_function;

static uint64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Nothing tells that the reaper has looked: it does so every 0.2 ms at least while work is in flight. */
static void
let_the_reaper_look(void)
{
    usleep(2000);
}

static void
say(const char *what, uint64_t number)
{
    printf("%s %llu\n", what, (unsigned long long)number);
    fflush(stdout);
}

static void
hear(void)
{
    char line[16];

    if (fgets(line, sizeof(line), stdin) == NULL)
        _exit(99);
}

static void
load_code(CUfunction *spin, CUfunction *fill)
{
    CUmodule module;

    CHECK(cuModuleLoadData(&module, code));
    CHECK(cuModuleGetFunction(spin, module, "hm_spin"));
    CHECK(cuModuleGetFunction(fill, module, "hm_fill"));
}

static void
spin_with(CUfunction function, CUstream stream, uint64_t ns)
{
    void *arguments[] = {&ns};

    CHECK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
}

static void
spin(CUstream stream, uint64_t ns)
{
    spin_with(spin_function, stream, ns);
}

/* Once it is known how long the short kernel takes, what is launched stays without a mark for a while. */
static void
learn(CUstream stream)
{
    for (int i = 0; i < 8; i++) {
        spin(stream, SHORT_NS);
        CHECK(cuStreamSynchronize(stream));
    }
}

static CUstream
make_stream(unsigned int flags)
{
    CUstream stream;

    CHECK(cuStreamCreate(&stream, flags));
    return stream;
}

static pthread_t
begin_thread(void *(*run)(void *), void *parameter)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, parameter) != 0)
        exit(98);
    return thread;
}

/* "launched T: it was not before T that the kernel began": for the test to see that nobody says sooner that it has ended. */
static void
launch_long(CUstream stream)
{
    uint64_t start = now_ns();

    spin(stream, LONG_NS);
    say("launched", start + LONG_NS);
}

/* The driver keeps the thread while the gate closes; HAMIRT_SIM_FAULT sees to that. */
static void
late(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);

    spin(stream, SHORT_NS);
    say("ready", 0);
    for (;;) {
        hear();
        say("launching", 0);
        spin(stream, LONG_NS);
        say("launched", now_ns() + LONG_NS);
    }
}

static void *
use_own_stream(void *unused)
{
    (void)unused;
    CHECK(cuCtxSetCurrent(primary));
    spin(CU_STREAM_PER_THREAD, SHORT_NS);
    CHECK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
    launch_long(CU_STREAM_PER_THREAD);
    CHECK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
    return NULL;
}

static void
per_thread(void)
{
    hear();
    pthread_join(begin_thread(use_own_stream, NULL), NULL);
    hear();
}

static void *
leave_a_tail(void *stream)
{
    CHECK(cuCtxSetCurrent(primary));
    spin(stream, SHORT_NS);
    return NULL;
}

/* The last of many threads ends, and what it leaves on its stream comes behind something long. */
static void
thread_ends(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);

    hear();
    learn(stream);
    for (int i = 0; i < 4 * THREADS; i++)
        pthread_join(begin_thread(leave_a_tail, stream), NULL);
    launch_long(stream);
    pthread_join(begin_thread(leave_a_tail, stream), NULL);
    hear();
}

/* What is left unmarked on one stream while others capture. Each graph has the kernel that was captured and no more. */
static void
capture_beside(CUstream left, CUstream stream, CUstreamCaptureMode mode, bool marks_follow)
{
    CUstream other = make_stream(CU_STREAM_NON_BLOCKING);
    size_t nodes = 99;
    CUgraph graph;

    learn(left);
    for (int i = 0; i < ROUNDS; i++) {
        spin(left, SHORT_NS);
        CHECK(cuStreamBeginCapture(stream, mode));
        spin(stream, SHORT_NS);
        if (marks_follow)
            spin(other, SHORT_NS);
        let_the_reaper_look();
        CHECK(cuStreamEndCapture(stream, &graph));
        CHECK(cuGraphGetNodes(graph, NULL, &nodes));
        if (nodes != 1)
            say("nodes", nodes);
        CHECK(cuGraphDestroy(graph));
        CHECK(cuCtxSynchronize());
    }
    launch_long(left);
    hear();
}

static CUstreamCaptureMode
mode_named(void)
{
    return strcmp(argument, "global") == 0   ? CU_STREAM_CAPTURE_MODE_GLOBAL
           : strcmp(argument, "thread") == 0 ? CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
                                             : CU_STREAM_CAPTURE_MODE_RELAXED;
}

static void
legacy_tail(void)
{
    hear();
    capture_beside(CU_STREAM_LEGACY, make_stream(CU_STREAM_DEFAULT), mode_named(), false);
}

static void
same_stream_tail(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);

    hear();
    capture_beside(stream, stream, mode_named(), true);
}

/* More streams than are noted one by one; the long kernel is on one in the middle. */
static void
many_streams(void)
{
    CUstream streams[THREADS];

    hear();
    for (int i = 0; i < THREADS; i++) {
        streams[i] = make_stream(CU_STREAM_NON_BLOCKING);
        spin(streams[i], SHORT_NS);
    }
    launch_long(streams[THREADS / 2]);
    spin(streams[0], SHORT_NS);
    hear();
}

static bool over; /* atomic */

static void *
launch_meanwhile(void *unused)
{
    CUstream stream;

    (void)unused;
    CHECK(cuCtxSetCurrent(primary));
    stream = make_stream(CU_STREAM_NON_BLOCKING);
    while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
        spin(stream, SHORT_NS);
        usleep(300);
    }
    return NULL;
}

/* Launches are allowed beside a GLOBAL capture of another thread; what the driver calls unsafe is not. */
static void
global_beside(void)
{
    pthread_t thread;

    hear();
    thread = begin_thread(launch_meanwhile, NULL);
    capture_beside(make_stream(CU_STREAM_NON_BLOCKING), make_stream(CU_STREAM_NON_BLOCKING),
                   mode_named(), false);
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
}

/* Begins a capture on a stream that may have the handle of one that is gone, with a tail. */
static void
made_again(void)
{
    size_t nodes;
    CUgraph graph;

    hear();
    learn(CU_STREAM_LEGACY);
    for (int i = 0; i < ROUNDS; i++) {
        CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);

        spin(stream, SHORT_NS);
        CHECK(cuStreamDestroy(stream));
        stream = make_stream(CU_STREAM_NON_BLOCKING);
        CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        let_the_reaper_look();
        CHECK(cuStreamEndCapture(stream, &graph));
        CHECK(cuGraphGetNodes(graph, NULL, &nodes));
        if (nodes != 0)
            say("nodes", nodes);
        CHECK(cuGraphDestroy(graph));
        CHECK(cuStreamDestroy(stream));
    }
    launch_long(CU_STREAM_LEGACY);
    hear();
}

/* A stream may go before what was launched on it. */
static void
launch_long_and_destroy(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    uint64_t start = now_ns();

    spin(stream, LONG_NS);
    CHECK(cuStreamDestroy(stream));
    say("launched", start + LONG_NS);
}

static void
streams_destroyed(void)
{
    pthread_t thread;

    hear();
    thread = begin_thread(launch_meanwhile, NULL);
    learn(CU_STREAM_LEGACY);
    for (int i = 0; i < 4 * ROUNDS; i++) {
        CUstream stream = make_stream(i % 2 == 0 ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING);

        spin(stream, i % 3 == 0 ? SHORT_NS : MS);
        CHECK(cuStreamDestroy(stream));
    }
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    launch_long_and_destroy();
    hear();
}

static void
contexts_destroyed(void)
{
    pthread_t thread;

    hear();
    thread = begin_thread(launch_meanwhile, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        CUfunction function, unused;
        CUcontext context;
        CUstream stream;

        CHECK(cuCtxCreate(&context, NULL, 0, device));
        load_code(&function, &unused);
        stream = make_stream(CU_STREAM_NON_BLOCKING);
        spin_with(function, stream, MS);
        spin_with(function, CU_STREAM_LEGACY, SHORT_NS);
        if (i % 2 == 0)
            CHECK(cuStreamDestroy(stream));
        CHECK(cuCtxDestroy(context));
        CHECK(cuCtxSetCurrent(primary));
    }
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    launch_long(CU_STREAM_LEGACY);
    hear();
}

/* The default streams of two contexts have one handle. */
static void
two_contexts(void)
{
    CUfunction function, unused;
    CUcontext second;

    hear();
    CHECK(cuCtxCreate(&second, NULL, 0, device));
    load_code(&function, &unused);
    CHECK(cuCtxSetCurrent(primary));
    learn(CU_STREAM_LEGACY);
    spin(CU_STREAM_LEGACY, SHORT_NS);
    CHECK(cuCtxSetCurrent(second));
    spin_function = function;
    launch_long(CU_STREAM_LEGACY);
    hear();
}

static void
primary_reset(void)
{
    hear();
    for (int i = 0; i < ROUNDS; i++) {
        CUfunction function, unused;

        CHECK(cuDevicePrimaryCtxReset(device));
        CHECK(cuDevicePrimaryCtxRetain(&primary, device));
        CHECK(cuCtxSetCurrent(primary));
        load_code(&function, &unused);
        spin_with(function, make_stream(CU_STREAM_NON_BLOCKING), MS);
        spin_with(function, CU_STREAM_LEGACY, SHORT_NS);
        spin_function = function;
    }
    CHECK(cuCtxSynchronize());
    launch_long(CU_STREAM_LEGACY);
    hear();
}

static void *
exit_here(void *unused)
{
    (void)unused;
    exit(EXIT_CODE);
}

static int
end_of(pid_t child)
{
    int status;

    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Children that end in every way; none of that is the parent's end, whose work goes on. */
static void
forked(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    pid_t child;

    hear();
    launch_long(stream);
    if ((child = fork()) == 0)
        exit(EXIT_CODE);
    say("exit", (uint64_t)end_of(child));
    if ((child = fork()) == 0)
        pthread_join(begin_thread(exit_here, NULL), NULL);
    say("exit of a thread", (uint64_t)end_of(child));
    if ((child = fork()) == 0)
        execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
    say("exec", (uint64_t)end_of(child));
    hear();
}

static void *
launch_long_there(void *unused)
{
    (void)unused;
    CHECK(cuCtxSetCurrent(primary));
    spin(CU_STREAM_LEGACY, 100 * LONG_NS);
    return NULL;
}

/* The process ends while its work is on the card, or while a thread waits at the gate. */
static void
ends(void)
{
    bool waits = strstr(argument, "waiting") != NULL;

    spin(CU_STREAM_LEGACY, SHORT_NS);
    CHECK(cuCtxSynchronize());
    say("ready", 0);
    hear();
    if (waits)
        begin_thread(launch_long_there, NULL);
    else
        launch_long_there(NULL);
    say("launched", 0);
    hear();
    if (strncmp(argument, "exec", 4) == 0)
        execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
    if (strncmp(argument, "thread", 6) == 0)
        pthread_join(begin_thread(exit_here, NULL), NULL);
    exit(EXIT_CODE);
}

static CUstream crowd[THREADS];

static void *
launch_on(void *stream)
{
    CHECK(cuCtxSetCurrent(primary));
    while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < 3; i++)
            spin(stream, SHORT_NS);
        CHECK(cuStreamSynchronize(stream));
    }
    return NULL;
}

/* Each line heard is answered with how many streams have work: none must, while the tenant is drained. */
static void
many_threads(void)
{
    pthread_t threads[THREADS];
    char line[16];

    for (int i = 0; i < THREADS; i++)
        crowd[i] = make_stream(CU_STREAM_NON_BLOCKING);
    for (int i = 0; i < THREADS; i++)
        threads[i] = begin_thread(launch_on, crowd[i]);
    say("ready", 0);
    while (fgets(line, sizeof(line), stdin) != NULL && line[0] != 'q') {
        uint64_t busy = 0;

        for (int i = 0; i < THREADS; i++)
            busy += cuStreamQuery(crowd[i]) != CUDA_SUCCESS;
        say("busy", busy);
    }
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static CUdeviceptr told; /* by host and card alike */

static void CUDA_CB
wait_for_line(void *unused)
{
    (void)unused;
    hear();
}

/* One stream waits for a host function or a value, which the next line on standard input brings; another one works. */
static void
stuck(void)
{
    CUstream waits = make_stream(CU_STREAM_NON_BLOCKING),
             works = make_stream(CU_STREAM_NON_BLOCKING);
    static uint32_t value;
    char line[16];
    bool by_value = strcmp(argument, "value") == 0;

    told = (CUdeviceptr)&value;
    if (by_value)
        CHECK(cuStreamWaitValue32(waits, told, 1, CU_STREAM_WAIT_VALUE_GEQ));
    else
        CHECK(cuLaunchHostFunc(waits, wait_for_line, NULL));
    spin(waits, SHORT_NS);
    say("ready", 0);
    for (int i = 0; cuStreamQuery(waits) != CUDA_SUCCESS; i++) {
        spin(works, SHORT_NS);
        CHECK(cuStreamSynchronize(works));
        if (by_value && i == 200)
            value = fgets(line, sizeof(line), stdin) != NULL;
    }
    CHECK(cuStreamSynchronize(waits));
}

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

    CHECK(cuCtxSetCurrent(primary));
    for (int i = 0; i < WRITES; i++)
        write_once(writer);
    CHECK(cuStreamSynchronize(writer->stream));
    CHECK(cuMemcpyDtoH(copy, writer->buffer, BUFFER));
    for (int i = 0; i < BUFFER; i++)
        writer->sum = writer->sum * 31 + copy[i];
    return NULL;
}

static void
patterns(void)
{
    struct writer writers[WRITERS];

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
}

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {
    {"late", late},
    {"per_thread", per_thread},
    {"thread_ends", thread_ends},
    {"legacy_tail", legacy_tail},
    {"same_stream_tail", same_stream_tail},
    {"global_beside", global_beside},
    {"made_again", made_again},
    {"streams_destroyed", streams_destroyed},
    {"contexts_destroyed", contexts_destroyed},
    {"many_streams", many_streams},
    {"two_contexts", two_contexts},
    {"primary_reset", primary_reset},
    {"forked", forked},
    {"ends", ends},
    {"many_threads", many_threads},
    {"stuck", stuck},
    {"patterns", patterns},
};

int
main(int argc, char **argv)
{
    if (argc > 2)
        argument = argv[2];
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&primary, device));
    CHECK(cuCtxSetCurrent(primary));
    load_code(&spin_function, &fill_function);
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
        if (argc > 1 && strcmp(argv[1], scenarios[i].name) == 0) {
            scenarios[i].run();
            say("over", 0);
            return 0;
        }
    return 2;
}
