/*
 * Print how many MiB CUDA says the first card has: through the shim the tenant's cap, past it the
 * whole card.
 *
 *     card_size [dlmopen]
 *
 * dlmopen: load the driver into a namespace of its own. With HOLD=MIB in the environment it
 * then takes so much memory, prints "holds" and waits for the end of standard input. Names the
 * simulated driver and its state itself, since NVIDIA's is found without an environment, too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL(name, ...) ((int (*)())dlsym(cuda, name))(__VA_ARGS__)

static void *cuda;

static int
hold(size_t mib)
{
    unsigned long long pointer;
    void *context;
    int result = CALL("cuDevicePrimaryCtxRetain", &context, 0);

    if (result == 0)
        result = CALL("cuCtxSetCurrent", context);
    if (result == 0)
        result = CALL("cuMemAlloc_v2", &pointer, mib << 20);
    if (result != 0)
        return result;
    puts("holds");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}

int
main(int argc, char **argv)
{
    const char *path = "/run/hamirt/sim/libcuda.so.1";
    bool apart = argc > 1 && strcmp(argv[1], "dlmopen") == 0;
    size_t bytes = 0;
    int result;

    cuda = apart ? dlmopen(LM_ID_NEWLM, path, RTLD_NOW) : dlopen(path, RTLD_NOW);
    if (cuda == NULL) {
        puts(dlerror());
        return 2;
    }
    setenv("HAMIRT_SIM_STATE", "/run/hamirt/sim-state", 0);
    result = CALL("cuInit", 0);
    if (result == 0)
        result = CALL("cuDeviceTotalMem_v2", &bytes, 0);
    if (result == 0)
        printf("%zu\n", bytes >> 20);
    fflush(stdout);
    if (result == 0 && getenv("HOLD") != NULL)
        result = hold(strtoull(getenv("HOLD"), NULL, 10));
    if (result != 0)
        printf("CUDA error %d\n", result);
    return 0;
}
