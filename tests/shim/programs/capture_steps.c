/* hook_capture.c on its own, in front of the simulated driver. Prints after each step how many captures it counts. */
#include "hook_capture.c"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 1000
#define MANY 40 /* more than are known by name */

struct hm_real real;
bool hm_cuda_resolved;
__thread int hm_depth __attribute__((tls_model("initial-exec")));

bool
hm_resolve_cuda(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);

#define CUDA_HOOK(sym) *(void **)&real.sym = dlsym(driver, #sym);
#define NVML_HOOK(sym)
#define CUDA_CALL(sym) CUDA_HOOK(sym)
#define NVML_CALL(sym)
#include "hooks.def"
    hm_cuda_resolved = true;
    return true;
}

static CUcontext context;

static CUstream
make_stream(void)
{
    CUstream stream = NULL;

    cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
    return stream;
}

static void
say(const char *step, CUresult result)
{
    printf("%s %d %d\n", step, (int)result, hm_capture_count());
}

static CUresult
begin(CUstream stream)
{
    return cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
}

static CUresult
end(CUstream stream)
{
    CUgraph graph;

    return cuStreamEndCapture(stream, &graph);
}

static void *
end_elsewhere(void *stream)
{
    say("without a context", end(stream));
    cuCtxSetCurrent(context);
    say("elsewhere", end(stream));
    return NULL;
}

static void
in_thread(void *(*run)(void *), void *argument)
{
    pthread_t thread;

    pthread_create(&thread, NULL, run, argument);
    pthread_join(thread, NULL);
}

static void
plain(void)
{
    CUstream stream = make_stream(), other = make_stream();
    CUgraph graph;

    say("nothing", CUDA_SUCCESS);
    say("legacy", begin(NULL));
    say("begun", begin(stream));
    printf("%d %d\n", hm_capture_runs(stream, false), hm_capture_runs(other, false));
    say("again", begin(stream));
    say("other ended", end(other));
    say("ended", end(stream));
    printf("%d\n", hm_capture_runs(stream, false));
    cuGraphCreate(&graph, 0);
    say("to graph",
        cuStreamBeginCaptureToGraph(stream, graph, NULL, NULL, 0, CU_STREAM_CAPTURE_MODE_RELAXED));
    say("ended", end(stream));
}

static void
broken(void)
{
    CUstream stream = make_stream(), joined = make_stream();
    CUevent event;

    cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
    begin(stream);
    in_thread(end_elsewhere, stream);
    cuEventRecord(event, stream);
    cuStreamWaitEvent(joined, event, 0);
    say("joined", end(joined));
    cuStreamQuery(stream);
    say("invalidated", end(stream));
}

static void
destroyed(void)
{
    CUstream stream = make_stream(), other = make_stream();

    begin(other);
    say("begun", begin(stream));
    hm_capture_stream_goes(stream);
    say("gone", cuStreamDestroy_v2(stream));
    say("ended", end(other));
}

static void
many(void)
{
    CUstream streams[MANY];

    for (int i = 0; i < MANY; i++)
        begin(streams[i] = make_stream());
    say("begun", CUDA_SUCCESS);
    for (int i = 0; i < MANY; i++)
        end(streams[i]);
    say("ended", CUDA_SUCCESS);
    printf("%d\n", hm_capture_runs(streams[0], false));
}

static void *
own_stream(void *unused)
{
    CUgraph graph;

    (void)unused;
    cuCtxSetCurrent(context);
    say("begun too", cuStreamBeginCapture_v2(CU_STREAM_PER_THREAD, CU_STREAM_CAPTURE_MODE_RELAXED));
    printf("%d\n", hm_capture_runs(NULL, true));
    say("ended", cuStreamEndCapture_ptsz(NULL, &graph));
    say("again", cuStreamEndCapture_ptsz(NULL, &graph));
    return NULL;
}

static void
threads(void)
{
    CUgraph graph;

    say("begun", cuStreamBeginCapture_v2_ptsz(NULL, CU_STREAM_CAPTURE_MODE_RELAXED));
    in_thread(own_stream, NULL);
    say("ended", cuStreamEndCapture(CU_STREAM_PER_THREAD, &graph));
}

static void
forked(void)
{
    CUstream stream = make_stream();

    say("begun", begin(stream));
    fflush(stdout);
    hm_capture_lock(); /* as a thread may that the child lacks */
    if (fork() == 0) {
        hm_capture_after_fork_child();
        begins();
        say("child", CUDA_SUCCESS);
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    hm_capture_unlock();
    say("parent", CUDA_SUCCESS);
}

static bool unlocked, early; /* atomic */

static CUresult
note_begin(CUstream stream, CUstreamCaptureMode mode)
{
    (void)stream;
    (void)mode;
    if (!__atomic_load_n(&unlocked, __ATOMIC_SEQ_CST))
        __atomic_store_n(&early, true, __ATOMIC_SEQ_CST);
    return CUDA_ERROR_UNKNOWN;
}

static void *
begin_once(void *ready)
{
    __atomic_store_n((bool *)ready, true, __ATOMIC_SEQ_CST);
    begin(NULL);
    return NULL;
}

static void
locked(void)
{
    real.cuStreamBeginCapture_v2 = note_begin;
    for (int i = 0; i < ROUNDS; i++) {
        bool ready = false;
        pthread_t thread;

        __atomic_store_n(&unlocked, false, __ATOMIC_SEQ_CST);
        hm_capture_lock();
        pthread_create(&thread, NULL, begin_once, &ready);
        while (!__atomic_load_n(&ready, __ATOMIC_SEQ_CST))
            ;
        for (volatile int spins = 0; spins < 1000; spins++)
            ;
        if (hm_capture_count() != 0)
            early = true;
        __atomic_store_n(&unlocked, true, __ATOMIC_SEQ_CST);
        hm_capture_unlock();
        pthread_join(thread, NULL);
    }
    printf("%d\n", early);
}

int
main(int count, char **argument)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } scenarios[] = {{"plain", plain},  {"broken", broken},   {"destroyed", destroyed},
                     {"many", many},    {"threads", threads}, {"forked", forked},
                     {"locked", locked}};

    hm_resolve_cuda();
    cuInit(0);
    cuDevicePrimaryCtxRetain(&context, 0);
    cuCtxSetCurrent(context);
    for (size_t i = 0; count > 1 && i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
        if (strcmp(argument[1], scenarios[i].name) == 0)
            scenarios[i].run();
    return 0;
}
