/*
 * Does with the pool of pool_driver.c what it is told, a word and a number a line, and prints the driver's answer:
 * reserved MIB (what the driver says from now on), alloc MIB, wait, trim.
 */
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define MIB (1024ull * 1024)

int
main(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    cuuint64_t *reserved = dlsym(driver, "pool_reserved");
    __typeof__(&cuInit) init = (__typeof__(init))dlsym(driver, "cuInit");
    __typeof__(&cuMemAllocAsync) alloc = (__typeof__(alloc))dlsym(driver, "cuMemAllocAsync");
    __typeof__(&cuMemPoolTrimTo) trim = (__typeof__(trim))dlsym(driver, "cuMemPoolTrimTo");
    __typeof__(&cuStreamSynchronize) wait = (__typeof__(wait))dlsym(driver, "cuStreamSynchronize");
    unsigned long long mib;
    CUdeviceptr pointer;
    char word[16];

    printf("%d\n", init(0));
    fflush(stdout);
    while (scanf("%15s %llu", word, &mib) == 2) {
        CUresult result = CUDA_SUCCESS;

        if (strcmp(word, "reserved") == 0)
            *reserved = mib * MIB;
        else if (strcmp(word, "alloc") == 0)
            result = alloc(&pointer, mib * MIB, NULL);
        else if (strcmp(word, "trim") == 0)
            result = trim((CUmemoryPool)reserved, 0);
        else
            result = wait(NULL);
        printf("%d\n", result);
        fflush(stdout);
    }
    return 0;
}
