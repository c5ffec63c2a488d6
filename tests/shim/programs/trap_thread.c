/* Threads that are preempted, that end, that are many, and their own streams. */
#include "trap.h"

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

static bool over; /* atomic */
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

static const struct scenario scenarios[] = {
    {"late", late},
    {"per_thread", per_thread},
    {"thread_ends", thread_ends},
    {"many_threads", many_threads},
    {NULL, NULL},
};

int
main(int argc, char **argv)
{
    return run_one(scenarios, argc, argv);
}
