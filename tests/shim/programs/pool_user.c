/*
 * Does with the pool of pool_driver.c what it is told, a word and a number a line, and prints the driver's answer:
 * reserved MIB (what the driver says from now on), grows MIB (at the next allocation), alloc MIB, wait, trim, destroy;
 * hold: another thread is in a synchronization now; let: it has returned.
 */
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>

#define MIB (1024ull * 1024)
#define HELD ((void *)4096) /* the stream for which pool_driver.c waits until it is told */

static __typeof__(&cuStreamSynchronize) wait_for;

static void *
hold(void *stream)
{
    wait_for(stream);
    return NULL;
}

int
main(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    cuuint64_t *reserved = dlsym(driver, "pool_reserved");
    __typeof__(&cuInit) init = (__typeof__(init))dlsym(driver, "cuInit");
    __typeof__(&cuMemAllocAsync) alloc = (__typeof__(alloc))dlsym(driver, "cuMemAllocAsync");
    __typeof__(&cuMemPoolTrimTo) trim = (__typeof__(trim))dlsym(driver, "cuMemPoolTrimTo");
    __typeof__(&cuMemPoolDestroy) destroy = (__typeof__(destroy))dlsym(driver, "cuMemPoolDestroy");
    cuuint64_t *grows = dlsym(driver, "pool_grows");
    sem_t *waits = dlsym(driver, "pool_waits"), *goes_on = dlsym(driver, "pool_goes_on");
    pthread_t holder;
    unsigned long long mib;
    CUdeviceptr pointer;
    char word[16];

    wait_for = (__typeof__(wait_for))dlsym(driver, "cuStreamSynchronize");
    sem_init(waits, 0, 0);
    sem_init(goes_on, 0, 0);
    printf("%d\n", init(0));
    fflush(stdout);
    while (scanf("%15s %llu", word, &mib) == 2) {
        CUresult result = CUDA_SUCCESS;

        if (strcmp(word, "reserved") == 0)
            *reserved = mib * MIB;
        else if (strcmp(word, "grows") == 0)
            *grows = mib * MIB;
        else if (strcmp(word, "alloc") == 0)
            result = alloc(&pointer, mib * MIB, NULL);
        else if (strcmp(word, "trim") == 0)
            result = trim((CUmemoryPool)reserved, 0);
        else if (strcmp(word, "destroy") == 0)
            result = destroy((CUmemoryPool)reserved);
        else if (strcmp(word, "hold") == 0) {
            pthread_create(&holder, NULL, hold, HELD);
            sem_wait(waits);
        } else if (strcmp(word, "let") == 0) {
            sem_post(goes_on);
            pthread_join(holder, NULL);
        } else
            result = wait_for(NULL);
        printf("%d\n", result);
        fflush(stdout);
    }
    return 0;
}
