/*
 * For programs that do one thing after another and stop to be looked at. Each stop prints its name and by how many KiB
 * the free memory fell since the last context was made, as cuMemGetInfo tells it; then it waits for a line on standard
 * input (its end will do). Without the shim that is the card's free memory, with it the room under the cap.
 */
#pragma once
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

#define CHECK(call) check((call), #call, __LINE__)

static CUdevice device;
static size_t free_at_start;

static inline void
check(CUresult result, const char *call, int line)
{
    const char *name = "?";

    if (result == CUDA_SUCCESS)
        return;
    cuGetErrorName(result, &name);
    fprintf(stderr, "line %d: %s: %s\n", line, call, name);
    exit(1);
}

static inline size_t
free_bytes(void)
{
    size_t free_now, total;

    CHECK(cuMemGetInfo(&free_now, &total));
    return free_now;
}

static inline void
start(void)
{
    CUcontext context;

    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    /* The shim measures a new context a moment after it was made. */
    for (int quiet_ms = 0; quiet_ms < 30; quiet_ms++) {
        size_t now = free_bytes();

        quiet_ms = now == free_at_start ? quiet_ms : 0;
        free_at_start = now;
        usleep(1000);
    }
}

static inline void
stop_with(const char *what, long fell_kib)
{
    char line[16];

    printf("%s %ld\n", what, fell_kib);
    fflush(stdout);
    if (fgets(line, sizeof(line), stdin) == NULL)
        return;
}

static inline void
stop(const char *what)
{
    stop_with(what, ((long)free_at_start - (long)free_bytes()) / 1024);
}

/* To be looked at without a call that may refresh the ledger. */
static inline void
stop_silently(const char *what)
{
    stop_with(what, 0);
}

/* The name of an answer, without CUDA_. */
static inline void
answer(const char *what, CUresult result)
{
    const char *name = "CUDA_?";

    cuGetErrorName(result, &name);
    printf("%s %s\n", what, name + strlen("CUDA_"));
    fflush(stdout);
}
