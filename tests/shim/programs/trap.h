/*
 * For programs that try what threads, captures, contexts and ends of a process can do to a gate, a scenario a run:
 *
 *     trap_SUBJECT SCENARIO [ARGUMENT]
 *
 * They print what they have done and, where the test has to do something, wait for a line on standard input.
 */
#pragma once
#include "steps.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define MS 1000000ull
#define SHORT_NS 20000ull /* of a kernel that gets no mark of its own once it is known */
#define LONG_NS (200 * MS)
#define THREADS 64

static const char code[] = ".version 7.0\n.target sm_52\n.address_size 64\n"
                           ".visible .entry hm_spin(.param .u64 ns)\n{\n ret;\n}\n"
                           ".visible .entry hm_fill(.param .u64 a, .param .u32 v, .param .u64 n)\n"
                           "{\n ret;\n}\n";
static const char *argument = "";
static CUcontext primary;
static CUfunction spin_function, fill_function;

static inline uint64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline void
say(const char *what, uint64_t number)
{
    printf("%s %llu\n", what, (unsigned long long)number);
    fflush(stdout);
}

static inline void
hear(void)
{
    char line[16];

    if (fgets(line, sizeof(line), stdin) == NULL)
        _exit(99);
}

static inline void
load_code(CUfunction *spin, CUfunction *fill)
{
    CUmodule module;

    CHECK(cuModuleLoadData(&module, code));
    CHECK(cuModuleGetFunction(spin, module, "hm_spin"));
    CHECK(cuModuleGetFunction(fill, module, "hm_fill"));
}

/* For each number of blocks it is work of another kind. */
static inline void
spin_on(CUfunction function, unsigned int blocks, CUstream stream, uint64_t ns)
{
    void *arguments[] = {&ns};

    CHECK(cuLaunchKernel(function, blocks, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
}

static inline void
spin_with(CUfunction function, CUstream stream, uint64_t ns)
{
    spin_on(function, 1, stream, ns);
}

static inline void
spin(CUstream stream, uint64_t ns)
{
    spin_with(spin_function, stream, ns);
}

/* Once it is known how long the short kernel takes, what is launched stays without a mark for a while. */
static inline void
learn(CUstream stream)
{
    for (int i = 0; i < 8; i++) {
        spin(stream, SHORT_NS);
        CHECK(cuStreamSynchronize(stream));
    }
}

static inline CUstream
make_stream(unsigned int flags)
{
    CUstream stream;

    CHECK(cuStreamCreate(&stream, flags));
    return stream;
}

static inline pthread_t
begin_thread(void *(*run)(void *), void *parameter)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, parameter) != 0)
        exit(98);
    return thread;
}

/* "launched T: it was not before T that the kernel began": for the test to see that nobody says sooner that it has ended. */
static inline void
launch_long(CUstream stream)
{
    uint64_t start = now_ns();

    spin(stream, LONG_NS);
    say("launched", start + LONG_NS);
}

/* The primary context of the first card is current, and the code is loaded. */
static inline void
begin(void)
{
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&primary, device));
    CHECK(cuCtxSetCurrent(primary));
    load_code(&spin_function, &fill_function);
}

struct scenario {
    const char *name; /* NULL: the last one */
    void (*run)(void);
};

/* For main: run the scenario that the command line names. */
static inline int
run_one(const struct scenario *scenarios, int argc, char **argv)
{
    if (argc > 2)
        argument = argv[2];
    begin();
    for (; scenarios->name != NULL; scenarios++)
        if (argc > 1 && strcmp(argv[1], scenarios->name) == 0) {
            scenarios->run();
            say("over", 0);
            return 0;
        }
    return 2;
}
