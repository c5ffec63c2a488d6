/*
 * What the hooks cost, call for call: in one process of a tenant, batches through the driver's own function (found in
 * libcuda's symbol table, past every hook) and through the one that a program gets from dlsym, taken in turns. Two
 * processes differ by more than a hook costs. Prints {"N": [{series: ns per call}, ...], "H": ..., "A": ...}.
 *
 *     hamirt run --mem 40GiB -- ./paired ROUNDS CONTEXT_ROUNDS
 */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#include "kernels.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PASSES 5
#define ROLES 3 /* native, hook, native again */

struct calls {
    CUresult (*alloc)(CUdeviceptr *, size_t);
    CUresult (*release)(CUdeviceptr);
    CUresult (*alloc_async)(CUdeviceptr *, size_t, CUstream);
    CUresult (*free_async)(CUdeviceptr, CUstream);
    CUresult (*info)(size_t *, size_t *);
    CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       unsigned, CUstream, void **, void **);
    CUresult (*synchronize)(CUstream);
    CUresult (*create)(CUcontext *, unsigned, CUdevice);
    CUresult (*destroy)(CUcontext);
};

static struct calls native, hooked;
static CUfunction kernel;
static CUdevice device;
static void *driver;

struct search {
    const char *name;
    void *found;
};

static uint32_t
symbol_count(const uint32_t *hash)
{
    const uint32_t *bucket = hash + 4 + hash[2] * 2, *chain = bucket + hash[0];
    uint32_t last = 0;

    for (uint32_t i = 0; i < hash[0]; i++)
        last = bucket[i] > last ? bucket[i] : last;
    while (last >= hash[1] && (chain[last - hash[1]] & 1) == 0)
        last++;
    return last + 1;
}

static int
look(struct dl_phdr_info *info, size_t size, void *argument)
{
    struct search *search = argument;
    const ElfW(Sym) *symbols = NULL;
    const uint32_t *hash = NULL;
    const char *strings = NULL;

    (void)size;
    if (strstr(info->dlpi_name, "libcuda.so") == NULL)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Dyn) *entry = (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);

        if (info->dlpi_phdr[i].p_type != PT_DYNAMIC)
            continue;
        for (; entry->d_tag != DT_NULL; entry++) {
            if (entry->d_tag == DT_SYMTAB)
                symbols = (const ElfW(Sym) *)entry->d_un.d_ptr;
            if (entry->d_tag == DT_STRTAB)
                strings = (const char *)entry->d_un.d_ptr;
            if (entry->d_tag == DT_GNU_HASH)
                hash = (const uint32_t *)entry->d_un.d_ptr;
        }
    }
    if (symbols == NULL || strings == NULL || hash == NULL)
        return 0;
    for (uint32_t i = 0, count = symbol_count(hash); i < count; i++)
        if (symbols[i].st_shndx != SHN_UNDEF &&
            strcmp(strings + symbols[i].st_name, search->name) == 0)
            search->found = (void *)(info->dlpi_addr + symbols[i].st_value);
    return search->found != NULL;
}

static void *
past_hooks(const char *name)
{
    struct search search = {name, NULL};

    dl_iterate_phdr(look, &search);
    if (search.found == NULL) {
        fprintf(stderr, "libcuda has no %s\n", name);
        exit(1);
    }
    return search.found;
}

static void *
as_given(const char *name)
{
    return dlsym(driver, name);
}

static void
fill(struct calls *calls, void *(*get)(const char *))
{
    calls->alloc = (__typeof__(calls->alloc))get("cuMemAlloc_v2");
    calls->release = (__typeof__(calls->release))get("cuMemFree_v2");
    calls->alloc_async = (__typeof__(calls->alloc_async))get("cuMemAllocAsync");
    calls->free_async = (__typeof__(calls->free_async))get("cuMemFreeAsync");
    calls->info = (__typeof__(calls->info))get("cuMemGetInfo_v2");
    calls->launch = (__typeof__(calls->launch))get("cuLaunchKernel");
    calls->synchronize = (__typeof__(calls->synchronize))get("cuStreamSynchronize");
    calls->create = (__typeof__(calls->create))get("cuCtxCreate_v2");
    calls->destroy = (__typeof__(calls->destroy))get("cuCtxDestroy_v2");
}

static double
now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void
must(CUresult result, const char *what)
{
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "%s: error %d\n", what, result);
    exit(1);
}

static void
small_allocations(const struct calls *calls)
{
    CUdeviceptr pointer;

    must(calls->alloc(&pointer, 4096), "cuMemAlloc");
    must(calls->release(pointer), "cuMemFree");
}

static void
large_allocations(const struct calls *calls)
{
    CUdeviceptr pointer;

    must(calls->alloc(&pointer, 64 << 20), "cuMemAlloc");
    must(calls->release(pointer), "cuMemFree");
}

static void
pool_allocations(const struct calls *calls)
{
    CUdeviceptr pointer;

    must(calls->alloc_async(&pointer, 1 << 20, NULL), "cuMemAllocAsync");
    must(calls->free_async(pointer, NULL), "cuMemFreeAsync");
}

static void
infos(const struct calls *calls)
{
    size_t free_bytes, total_bytes;

    must(calls->info(&free_bytes, &total_bytes), "cuMemGetInfo");
}

static void
launches(const struct calls *calls)
{
    uint64_t ns = 0;
    void *arguments[] = {&ns};

    must(calls->launch(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL), "cuLaunchKernel");
}

static void
launch_and_wait(const struct calls *calls)
{
    launches(calls);
    must(calls->synchronize(NULL), "cuStreamSynchronize");
}

/* How long it takes to make a context, ns. */
static double
context_ns(const struct calls *calls)
{
    CUcontext context;
    double start = now_ns(), spent;

    must(calls->create(&context, 0, device), "cuCtxCreate");
    spent = now_ns() - start;
    must(calls->destroy(context), "cuCtxDestroy");
    return spent;
}

static const struct {
    const char *name;
    void (*once)(const struct calls *);
    int count; /* in a batch */
} series[] = {
    {"malloc_free_4KiB", small_allocations, 60},
    {"malloc_free_64MiB", large_allocations, 30},
    {"malloc_async_free_async_1MiB", pool_allocations, 3000},
    {"mem_get_info", infos, 300},
    {"launch_throughput", launches, 800},
    {"launch_sync", launch_and_wait, 200},
};

#define SERIES (sizeof(series) / sizeof(series[0]))

static int
by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

static double
batch(size_t which, const struct calls *calls, CUresult (*wait)(CUstream))
{
    double start = now_ns(), spent;

    for (int i = 0; i < series[which].count; i++)
        series[which].once(calls);
    spent = (now_ns() - start) / series[which].count;
    must(wait(NULL), "cuStreamSynchronize");
    return spent;
}

static const struct calls *
of_role(int role)
{
    return role == 1 ? &hooked : &native;
}

/* Medians of PASSES batches of each role, the roles in an order that changes. */
static void
one_round(int round, double figures[ROLES][SERIES])
{
    for (size_t which = 0; which < SERIES; which++) {
        double taken[ROLES][PASSES];

        for (int pass = 0; pass < PASSES; pass++)
            for (int turn = 0; turn < ROLES; turn++) {
                int role =
                    (round + pass) % 2 ? (turn + pass) % ROLES : (2 * ROLES - turn - pass) % ROLES;

                taken[role][pass] = batch(which, of_role(role), native.synchronize);
            }
        for (int role = 0; role < ROLES; role++) {
            qsort(taken[role], PASSES, sizeof(double), by_value);
            figures[role][which] = taken[role][PASSES / 2];
        }
    }
}

static void
print_role(const char *name, int role, int rounds, double (*figures)[ROLES][SERIES],
           int context_rounds, double (*context)[ROLES])
{
    printf("\"%s\": [", name);
    for (int round = 0; round < rounds; round++) {
        printf("%s{", round > 0 ? ", " : "");
        for (size_t which = 0; which < SERIES; which++)
            printf("%s\"%s\": %.2f", which > 0 ? ", " : "", series[which].name,
                   figures[round][role][which]);
        printf("}");
    }
    for (int round = 0; round < context_rounds; round++)
        printf(", {\"context\": %.0f}", context[round][role]);
    printf("]");
}

int
main(int count, char **argument)
{
    int rounds = count > 1 ? atoi(argument[1]) : 24,
        context_rounds = count > 2 ? atoi(argument[2]) : 0;
    double (*figures)[ROLES][SERIES] = calloc((size_t)rounds, sizeof(*figures));
    double (*context)[ROLES] = calloc((size_t)context_rounds + 1, sizeof(*context));
    CUmodule module;
    CUcontext primary;

    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL)
        return 1;
    fill(&native, past_hooks);
    fill(&hooked, as_given);
    must(((CUresult (*)(unsigned))as_given("cuInit"))(0), "cuInit");
    must(((CUresult (*)(CUdevice *, int))as_given("cuDeviceGet"))(&device, 0), "cuDeviceGet");
    must(((CUresult (*)(CUcontext *, CUdevice))as_given("cuDevicePrimaryCtxRetain"))(&primary,
                                                                                     device),
         "retain");
    must(((CUresult (*)(CUcontext))as_given("cuCtxSetCurrent"))(primary), "cuCtxSetCurrent");
    must(((CUresult (*)(CUmodule *, const void *))as_given("cuModuleLoadData"))(&module, hm_ptx),
         "cuModuleLoadData");
    must(((CUresult (*)(CUfunction *, CUmodule, const char *))as_given("cuModuleGetFunction"))(
             &kernel, module, "hm_spin"),
         "cuModuleGetFunction");
    one_round(0, figures[0]); /* to warm up */
    for (int round = 0; round < rounds; round++)
        one_round(round, figures[round]);
    for (int round = -1; round < context_rounds; round++)
        for (int turn = 0; turn < ROLES; turn++) {
            int role = round % 2 ? turn : ROLES - 1 - turn;

            context[round < 0 ? context_rounds : round][role] = context_ns(of_role(role));
        }
    printf("{");
    print_role("N", 0, rounds, figures, context_rounds, context);
    printf(", ");
    print_role("H", 1, rounds, figures, context_rounds, context);
    printf(", ");
    print_role("A", 2, rounds, figures, context_rounds, context);
    printf(", \"launch_is_the_drivers\": %s}\n", native.launch == hooked.launch ? "true" : "false");
    return 0;
}
