/* What captures, streams and contexts can do to marks. */
#include "trap.h"

#define ROUNDS 50

/* Nothing tells that the reaper has looked: it does so every 0.2 ms at least while work is in flight. */
static void
let_the_reaper_look(void)
{
    usleep(2000);
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

static const struct scenario scenarios[] = {
    {"legacy_tail", legacy_tail},
    {"same_stream_tail", same_stream_tail},
    {"global_beside", global_beside},
    {"made_again", made_again},
    {"streams_destroyed", streams_destroyed},
    {"many_streams", many_streams},
    {"contexts_destroyed", contexts_destroyed},
    {"two_contexts", two_contexts},
    {"primary_reset", primary_reset},
    {NULL, NULL},
};

int
main(int argc, char **argv)
{
    return run_one(scenarios, argc, argv);
}
