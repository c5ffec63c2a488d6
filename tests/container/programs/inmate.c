/*
 * What a program in a container sees of its GPU, by CUDA and by NVML, and how much it gets.
 *
 *     inmate [WORD...]
 *
 * views     print "cuda TOTAL FREE" and "nvml COUNT TOTAL USED", in MiB
 * fill      take memory in steps of 64 MiB until it is refused; print "got MIB CODE"
 * take MIB  take so much; print "take CODE"
 * pids      print the pids that NVML lists on the card
 * wait      print "waiting" and go on at the next line of standard input, or at its end
 *
 * Names the simulated driver and its state itself, since NVIDIA's is found without an environment,
 * too. A context is made before the first of these that needs one.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MIB (1ull << 20)
#define STEP_MIB 64
#define LONGEST_S 5
#define CALL(library, name, ...) ((int (*)())find(library, name))(__VA_ARGS__)

struct process {
    unsigned int pid;
    unsigned long long used;
    unsigned int instance, compute;
};

static void *cuda, *nvml;

static void *
find(void *library, const char *name)
{
    void *found = library != NULL ? dlsym(library, name) : NULL;

    if (found == NULL) {
        printf("%s: %s\n", name, dlerror());
        exit(2);
    }
    return found;
}

static void
check(const char *name, int code)
{
    if (code == 0)
        return;
    printf("%s: error %d\n", name, code);
    exit(1);
}

static void
make_context(void)
{
    static void *context;

    if (context != NULL)
        return;
    check("context", CALL(cuda, "cuDevicePrimaryCtxRetain", &context, 0));
    check("current", CALL(cuda, "cuCtxSetCurrent", context));
}

static void *
card(void)
{
    void *handle;

    check("handle", CALL(nvml, "nvmlDeviceGetHandleByIndex_v2", 0, &handle));
    return handle;
}

static void
print_views(void)
{
    unsigned long long memory[3]; /* nvmlMemory_t: total, free, used */
    unsigned int count;
    size_t total, rest;

    make_context();
    check("total", CALL(cuda, "cuDeviceTotalMem_v2", &total, 0));
    printf("cuda %llu", total / MIB);
    check("count", CALL(nvml, "nvmlDeviceGetCount_v2", &count));
    for (time_t end = time(NULL) + LONGEST_S; time(NULL) < end;) {
        check("info", CALL(cuda, "cuMemGetInfo_v2", &rest, &total));
        check("memory", CALL(nvml, "nvmlDeviceGetMemoryInfo", card(), memory));
        if (memory[2] == total - rest) /* else what the context takes was measured in between */
            break;
    }
    printf(" %llu\n", rest / MIB);
    printf("nvml %u %llu %llu\n", count, memory[0] / MIB, memory[2] / MIB);
}

static int
take(size_t mib)
{
    unsigned long long pointer;

    make_context();
    return CALL(cuda, "cuMemAlloc_v2", &pointer, mib * MIB);
}

static void
fill(void)
{
    size_t got = 0;
    int code;

    while ((code = take(STEP_MIB)) == 0)
        got += STEP_MIB;
    printf("got %zu %d\n", got, code);
}

static void
print_pids(void)
{
    struct process found[64];
    unsigned int count = 64;

    make_context();
    check("processes",
          CALL(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", card(), &count, found));
    printf("pids");
    for (unsigned int i = 0; i < count; i++)
        printf(" %u", found[i].pid);
    printf("\n");
}

static void
wait_for_line(void)
{
    char line[64];

    printf("waiting\n");
    fflush(stdout);
    if (fgets(line, sizeof(line), stdin) == NULL)
        clearerr(stdin);
}

int
main(int argc, char **argv)
{
    setenv("HAMIRT_SIM_STATE", "/run/hamirt/sim-state", 0);
    cuda = dlopen("/run/hamirt/sim/libcuda.so.1", RTLD_NOW);
    nvml = dlopen("/run/hamirt/sim/libnvidia-ml.so.1", RTLD_NOW);
    check("cuInit", CALL(cuda, "cuInit", 0));
    check("nvmlInit", CALL(nvml, "nvmlInit_v2"));
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "views") == 0)
            print_views();
        else if (strcmp(argv[i], "fill") == 0)
            fill();
        else if (strcmp(argv[i], "pids") == 0)
            print_pids();
        else if (strcmp(argv[i], "wait") == 0)
            wait_for_line();
        else if (strcmp(argv[i], "take") == 0 && i + 1 < argc)
            printf("take %d\n", take(strtoull(argv[++i], NULL, 10)));
        else
            return 2;
        fflush(stdout);
    }
    return 0;
}
