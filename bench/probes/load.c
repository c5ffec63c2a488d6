/*
 * A load for the card whose work bench/share.py counts from outside:
 *
 * load FILE COUNT RATE: does the jobs that FILE names and writes there what it got done. COUNT > 1: so
 * many processes, with FILE.0, FILE.1 ...; one that is killed is started again and goes on with its job.
 * load calibrate: prints the RATE, what the card works off in a microsecond.
 *
 * A kernel is a fixed amount of arithmetic on a full card, since a kernel that watches the clock would
 * count the time in which others have the card as its own work. RATE 0: the simulated card, which
 * executes nothing and knows hm_spin(ns).
 *
 * A job: units of some kernels, launched one by one or as a graph, `depth` of them queued on each of
 * some streams with a thread each; with a period, a unit each period, whose latency is noted. Nothing
 * is printed or allocated while it works.
 */
#include "driver.h"

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "kernels.h"
#include "load.h"

#define MOST_DEPTH 64
#define MOST_THREADS 16
#define POLL_MS 2
#define BLOCKS 1056 /* fills an H100: 132 multiprocessors, eight blocks each */
#define BLOCK_THREADS 256

/* One stream, the thread that fills it and what is queued there. */
struct queue {
    CUstream stream;
    CUgraphExec graph;
    CUevent events[MOST_DEPTH];
    uint64_t launched_ns[MOST_DEPTH]; /* when the unit's first kernel was */
    uint64_t due_ns;                  /* of a job with a period: when the next unit is to start */
    uint64_t started_ns;
    uint64_t head, tail;
};

static const char work_ptx[] =
    HM_PTX_HEAD ".visible .entry hm_work(.param .u64 p_iterations, .param .u64 p_out)\n"
                "{\n"
                "    .reg .pred %p<3>;\n"
                "    .reg .b32 %r<2>;\n"
                "    .reg .f32 %f<4>;\n"
                "    .reg .b64 %rd<3>;\n"
                "    ld.param.u64 %rd1, [p_iterations];\n"
                "    ld.param.u64 %rd2, [p_out];\n"
                "    cvta.to.global.u64 %rd2, %rd2;\n"
                "    mov.u32 %r1, %tid.x;\n"
                "    cvt.rn.f32.u32 %f1, %r1;\n"
                "    mov.f32 %f2, 0f3F800001;\n"
                "    mov.f32 %f3, 0f3F000000;\n"
                "LOOP:\n"
                "    setp.eq.u64 %p1, %rd1, 0;\n"
                "    @%p1 bra DONE;\n"
                "    fma.rn.f32 %f1, %f1, %f2, %f3;\n"
                "    sub.u64 %rd1, %rd1, 1;\n"
                "    bra LOOP;\n"
                "DONE:\n"
                "    setp.eq.f32 %p2, %f1, 0f4640E400;\n" /* never, but the compiler can't know */
                "    @%p2 st.global.f32 [%rd2], %f1;\n"
                "    ret;\n"
                "}\n";

static struct hm_kernels kernels;
static CUfunction work;
static CUdeviceptr out;
static CUcontext context;
static double rate;

/* The card's clock: elapsed_time from `base`, which was at `base_ns` of CLOCK_MONOTONIC. */
static __typeof__(&cuEventElapsedTime) elapsed_time;
static CUevent base;
static uint64_t base_ns;

static void
sleep_until(uint64_t ns)
{
    struct timespec when = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) != 0)
        ;
}

static CUresult
launch_kernel(CUstream stream, uint64_t length_ns)
{
    uint64_t iterations = (uint64_t)llround((double)length_ns * rate / 1000);
    void *arguments[] = {&iterations, &out};

    if (rate == 0)
        return hm_launch_spin(kernels.spin, stream, length_ns);
    if (length_ns == 0)
        return cu.cuLaunchKernel(kernels.empty, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL);
    return cu.cuLaunchKernel(work, BLOCKS, 1, 1, BLOCK_THREADS, 1, 1, 0, stream, arguments, NULL);
}

static void
launch_unit(struct queue *queue)
{
    uint64_t slot = queue->head % word(DEPTH), every = word(EVERY_NS), now = hm_now_ns();

    if (every > 0) {
        if (queue->due_ns > now)
            sleep_until(queue->due_ns);
        /* a request that had to wait for the one before it waited since it was due */
        queue->started_ns = queue->due_ns > now ? hm_now_ns() : queue->due_ns;
        queue->due_ns += every;
    }
    for (uint64_t i = 0; i < word(SMALL); i++) {
        for (uint64_t ready = hm_now_ns() + READY_NS; hm_now_ns() < ready;)
            ;
        CHECK(cu.cuLaunchKernel(kernels.empty, 1, 1, 1, 1, 1, 1, 0, queue->stream, NULL, NULL));
    }
    if (queue->graph != NULL)
        CHECK(cu.cuGraphLaunch(queue->graph, queue->stream));
    else
        CHECK(launch_kernel(queue->stream, word(LENGTH_NS)));
    queue->launched_ns[slot] = hm_now_ns();
    for (uint64_t i = 1; queue->graph == NULL && i < word(KERNELS); i++)
        CHECK(launch_kernel(queue->stream, word(LENGTH_NS)));
    if (word(DEPTH) > 1)
        CHECK(cu.cuEventRecord(queue->events[slot], queue->stream));
    queue->head++;
}

static void
finish_unit(struct queue *queue)
{
    uint64_t slot = queue->tail++ % word(DEPTH), at_ns;
    float ms;

    if (word(DEPTH) > 1) {
        CHECK(cu.cuEventSynchronize(queue->events[slot]));
        CHECK(elapsed_time(&ms, base, queue->events[slot]));
        at_ns = base_ns + (uint64_t)(ms * 1e6);
    } else {
        CHECK(cu.cuStreamSynchronize(queue->stream));
        at_ns = hm_now_ns();
    }
    if (word(EVERY_NS) > 0)
        note_request(queue->started_ns, at_ns - queue->started_ns);
    count_unit(queue->launched_ns[slot], at_ns);
}

static void *
run_queue(void *argument)
{
    struct queue *queue = argument;

    CHECK(cu.cuCtxSetCurrent(context));
    for (;;) {
        bool over = hm_now_ns() >= word(UNTIL_NS);

        if (!over && queue->head - queue->tail < word(DEPTH))
            launch_unit(queue);
        else if (queue->head > queue->tail)
            finish_unit(queue);
        else
            return NULL;
    }
}

static void
open_queue(struct queue *queue)
{
    CUgraph graph;

    *queue = (struct queue){.due_ns = word(FROM_NS)};
    CHECK(cu.cuStreamCreate(&queue->stream, CU_STREAM_NON_BLOCKING));
    for (uint64_t i = 0; i < word(DEPTH); i++)
        CHECK(cu.cuEventCreate(&queue->events[i], CU_EVENT_DEFAULT));
    if (word(GRAPH) == 0)
        return;
    CHECK(cu.cuStreamBeginCapture(queue->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (uint64_t i = 0; i < word(KERNELS); i++)
        CHECK(launch_kernel(queue->stream, word(LENGTH_NS)));
    CHECK(cu.cuStreamEndCapture(queue->stream, &graph));
    CHECK(cu.cuGraphInstantiateWithFlags(&queue->graph, graph, 0));
    CHECK(cu.cuGraphDestroy(graph));
}

static void
close_queue(struct queue *queue)
{
    if (queue->graph != NULL)
        CHECK(cu.cuGraphExecDestroy(queue->graph));
    for (uint64_t i = 0; i < word(DEPTH); i++)
        CHECK(cu.cuEventDestroy(queue->events[i]));
    CHECK(cu.cuStreamDestroy(queue->stream));
}

/* A clock of the card's for each job: they do not drift apart by much in that time. */
static void
set_clock(CUstream stream)
{
    CHECK(cu.cuEventRecord(base, stream));
    CHECK(cu.cuEventSynchronize(base));
    base_ns = hm_now_ns();
}

static void
do_job(void)
{
    static struct queue queues[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    uint64_t count = word(THREADS);

    if (count < 1 || count > MOST_THREADS || word(DEPTH) < 1 || word(DEPTH) > MOST_DEPTH)
        hm_die("a job of %llu threads, %llu units deep", (unsigned long long)count,
               (unsigned long long)word(DEPTH));
    for (uint64_t i = 0; i < count; i++)
        open_queue(&queues[i]);
    set_clock(queues[0].stream);
    sleep_until(word(FROM_NS));
    begin_account();
    for (uint64_t i = 1; i < count; i++)
        if (pthread_create(&threads[i], NULL, run_queue, &queues[i]) != 0)
            hm_die("no thread");
    run_queue(&queues[0]);
    for (uint64_t i = 1; i < count; i++)
        pthread_join(threads[i], NULL);
    push_sample(shared->total.at_ns);
    for (uint64_t i = 0; i < count; i++)
        close_queue(&queues[i]);
}

static void
start(void)
{
    CUmodule module;
    CUdevice device;

    context = hm_start(&device);
    hm_kernels_load(&kernels);
    CHECK(cu.cuModuleLoadData(&module, work_ptx));
    CHECK(cu.cuModuleGetFunction(&work, module, "hm_work"));
    CHECK(cu.cuMemAlloc(&out, 256));
    CHECK(cu.cuEventCreate(&base, CU_EVENT_DEFAULT));
    *(void **)&elapsed_time = dlsym(dlopen("libcuda.so.1", RTLD_NOW), HM_TEXT(cuEventElapsedTime));
    if (elapsed_time == NULL)
        hm_die("the driver library has no %s", HM_TEXT(cuEventElapsedTime));
}

/* Does one job after the other until it is told to quit. One process, which may follow a killed one. */
static int
serve(void)
{
    start();
    CHECK(launch_kernel(NULL, 1000)); /* the code is on the card before anybody counts */
    CHECK(cu.cuCtxSynchronize());
    set_word(PID, (uint64_t)getpid());
    while (word(QUIT) == 0) {
        uint64_t job = word(JOB);

        if (job == word(FINISHED)) {
            hm_sleep_ms(POLL_MS);
            continue;
        }
        do_job();
        set_word(FINISHED, job);
    }
    return 0;
}

/* Returns in the child; the children end with this process. */
static bool
child_of(pid_t parent, pid_t *child)
{
    *child = fork();
    if (*child < 0)
        hm_die("no process");
    if (*child > 0)
        return false;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    return true;
}

/* Keeps `count` processes at work; one that did not end by itself is replaced. */
static int
serve_as_many(const char *path, int count)
{
    pid_t parent = getpid(), *children = calloc((size_t)count, sizeof(*children)), ended;
    char name[4096];
    int status, index, living = count;

    if (children == NULL)
        hm_die("no memory");
    for (index = 0; index < count; index++)
        if (child_of(parent, &children[index]))
            goto child;
    while (living > 0 && (ended = wait(&status)) > 0) {
        for (index = 0; children[index] != ended; index++)
            ;
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
            return 1;
        if (WIFEXITED(status))
            living--;
        else if (child_of(parent, &children[index]))
            goto child;
    }
    return 0;
child:
    snprintf(name, sizeof(name), "%s.%d", path, index);
    map_shared(name);
    return serve();
}

static double
seconds_of(uint64_t iterations)
{
    void *arguments[] = {&iterations, &out};
    uint64_t before = hm_now_ns();

    CHECK(cu.cuLaunchKernel(work, BLOCKS, 1, 1, BLOCK_THREADS, 1, 1, 0, NULL, arguments, NULL));
    CHECK(cu.cuCtxSynchronize());
    return (double)(hm_now_ns() - before) * 1e-9;
}

/* By the difference of two lengths, so that what a launch takes drops out; the best of some. */
static int
calibrate(void)
{
    uint64_t iterations = 1000;
    double best = 0;

    start();
    while (seconds_of(iterations) < 0.02)
        iterations *= 2;
    for (int i = 0; i < 15; i++) {
        double took = seconds_of(2 * iterations) - seconds_of(iterations);

        if (took > 0 && (best == 0 || took < best))
            best = took;
    }
    printf("HMRESULT {\"iterations_per_us\": %.6f}\n",
           best > 0 ? (double)iterations / best * 1e-6 : 0.0);
    return best > 0 ? 0 : 1;
}

int
main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 0;

    if (argc == 2 && strcmp(argv[1], "calibrate") == 0)
        return calibrate();
    if (argc != 4 || count < 1)
        hm_die("usage: load FILE COUNT RATE | load calibrate");
    rate = strtod(argv[3], NULL);
    if (count > 1)
        return serve_as_many(argv[1], count);
    map_shared(argv[1]);
    return serve();
}
