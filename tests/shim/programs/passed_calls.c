/*
 * Calls every entry point that abi/passed.txt excuses, once, and prints what the card held before and after:
 * NAME CODE STUB BEFORE AFTER. The calls are generated, from the header's prototypes. Arguments: beginnings of names
 * to leave out, for a real card (nvml, which has settings; cuCheckpoint, which would stop ourselves).
 */
#include "passed_things.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TAKE(thing)                       \
    ({                                    \
        __typeof__(thing) taken_ = thing; \
        thing = 0;                        \
        taken_;                           \
    })

static void __attribute__((unused))
nothing(void *data)
{
    (void)data;
}

#define CALL(name, ...)                          \
    static int call_##name(void)                 \
    {                                            \
        return (int)(intptr_t)name(__VA_ARGS__); \
    }
#include "passed_generated.h"
#undef CALL

static const struct {
    const char *name;
    int (*call)(void);
} calls[] = {
#define CALL(name, ...) {#name, call_##name},
#include "passed_generated.h"
#undef CALL
};

static unsigned long long
card_used(void)
{
    nvmlMemory_t memory = {0};

    cuCtxSynchronize();
    nvmlDeviceGetMemoryInfo(things.card, &memory);
    return memory.used;
}

/* How often a function that the simulated driver does not implement was called; 0 on a real driver. */
static unsigned long long
stub_calls(const char *name)
{
    uint64_t (*count)(const char *);
    void *library = dlopen(name[0] == 'c' ? "libcuda.so.1" : "libnvidia-ml.so.1", RTLD_NOW);

    *(void **)&count = library != NULL ? dlsym(library, "hm_sim_stub_calls") : NULL;
    return count != NULL ? count(name) : 0;
}

static bool
left_out(const char *name, char **beginnings)
{
    for (; *beginnings != NULL; beginnings++)
        if (strncmp(name, *beginnings, strlen(*beginnings)) == 0)
            return true;
    return false;
}

int
main(int count, char **argument)
{
    (void)count;
    setvbuf(stdout, NULL, _IOLBF, 0);
    passed_start_other();
    if (cuInit(0) != CUDA_SUCCESS || nvmlInit_v2() != NVML_SUCCESS ||
        nvmlDeviceGetHandleByIndex_v2(0, &things.card) != NVML_SUCCESS)
        return 1;
    passed_make();
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        unsigned long long stubs = stub_calls(calls[i].name), before, after;
        int code;

        if (left_out(calls[i].name, argument + 1))
            continue;
        passed_renew();
        before = card_used();
        printf("%s ", calls[i].name);
        code = calls[i].call();
        after = card_used();
        printf("%d %d %llu %llu\n", code, stub_calls(calls[i].name) > stubs, before, after);
    }
    return 0;
}
