/*
 * What a program makes of a damaged page. `once`: prints what cuInit and an allocation answer. `loop`: allocates, asks
 * and frees until its standard input ends, then prints how often what was answered. `hold`: allocates once and waits.
 */
#include <cuda.h>
#include <nvml.h>

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MIB 1048576ul

static CUresult
context(void)
{
    CUcontext current;
    CUresult result = cuDevicePrimaryCtxRetain(&current, 0);

    return result == CUDA_SUCCESS ? cuCtxSetCurrent(current) : result;
}

static int
once(void)
{
    CUdeviceptr pointer = 0;
    CUresult init = cuInit(0), made = CUDA_ERROR_UNKNOWN, taken = CUDA_ERROR_UNKNOWN;
    size_t free_bytes = 0, total = 0;

    if (init == CUDA_SUCCESS)
        made = context();
    if (made == CUDA_SUCCESS) {
        taken = cuMemAlloc(&pointer, 16 * MIB);
        cuMemGetInfo(&free_bytes, &total);
    }
    if (taken == CUDA_SUCCESS)
        cuMemFree(pointer);
    printf("init %d context %d alloc %d total %zu\n", (int)init, (int)made, (int)taken,
           total / MIB);
    return 0;
}

static bool
go_on(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

    return poll(&input, 1, 0) == 0;
}

static int
loop(void)
{
    unsigned long done = 0, refused = 0, other = 0;
    CUdeviceptr kept = 0;

    if (cuInit(0) != CUDA_SUCCESS || context() != CUDA_SUCCESS ||
        cuMemAlloc(&kept, 32 * MIB) != CUDA_SUCCESS)
        return 2;
    printf("ready\n");
    fflush(stdout);
    while (go_on()) {
        CUdeviceptr pointer = 0;
        size_t free_bytes, total;
        CUresult result = cuMemAlloc(&pointer, 3 * MIB);

        done += result == CUDA_SUCCESS;
        refused += result == CUDA_ERROR_OUT_OF_MEMORY;
        other += result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY;
        cuMemGetInfo(&free_bytes, &total);
        if (result == CUDA_SUCCESS && cuMemFree(pointer) != CUDA_SUCCESS)
            other++;
    }
    printf("done %lu refused %lu other %lu free %d\n", done, refused, other, (int)cuMemFree(kept));
    return 0;
}

static int
hold(void)
{
    CUdeviceptr kept = 0;

    if (cuInit(0) != CUDA_SUCCESS || context() != CUDA_SUCCESS ||
        cuMemAlloc(&kept, 32 * MIB) != CUDA_SUCCESS)
        return 2;
    printf("ready\n");
    fflush(stdout);
    if (getchar() == EOF)
        return 3;
    printf("free %d\n", (int)cuMemFree(kept));
    return 0;
}

int
main(int count, char **argument)
{
    if (count > 1 && strcmp(argument[1], "hold") == 0)
        return hold();
    return count > 1 && strcmp(argument[1], "loop") == 0 ? loop() : once();
}
