/*
 * Fork before the first call, threads in each process, and an exec that starts over: hashes in a
 * fixed order.
 */
#include "sockets.h"

#include <pthread.h>

#include "kernels.h"

enum { CHILDREN = 3, THREADS = 4, WORDS = 1 << 18 };

static CUcontext context;
static struct hm_kernels kernels;
static uint64_t hashes[THREADS];

static void *
work(void *argument)
{
    unsigned index = (unsigned)(uintptr_t)argument;
    CUstream stream;
    CUdeviceptr ptr;

    CHECK(cu.cuCtxSetCurrent(context));
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (uint32_t turn = 0; turn < 50; turn++) {
        CHECK(cu.cuMemAlloc(&ptr, WORDS * 4ull));
        CHECK(hm_launch_words(kernels.fill, stream, ptr, index * 100 + turn, WORDS));
        CHECK(cu.cuStreamSynchronize(stream));
        hashes[index] = hashes[index] * 31 + hm_device_hash(ptr, WORDS);
        CHECK(cu.cuMemFree(ptr));
    }
    CHECK(cu.cuStreamDestroy(stream));
    return NULL;
}

static void
run_threads(void)
{
    pthread_t threads[THREADS];
    CUdevice device;

    context = hm_start(&device);
    hm_kernels_load(&kernels);
    for (uintptr_t i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0)
            hm_die("no thread");
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

int
main(int argc, char **argv)
{
    int sockets[2];

    if (argc > 1) { /* after the exec */
        run_threads();
        printf("RESULT processes exec=%016llx\n",
               (unsigned long long)hm_hash(hashes, sizeof hashes));
        return 0;
    }
    for (int i = 0; i < CHILDREN; i++) {
        uint64_t hash;
        pid_t child;

        if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0)
            hm_die("no socket pair");
        child = fork();
        if (child == 0) {
            run_threads();
            hash = hm_hash(hashes, sizeof hashes);
            send_bytes(sockets[1], &hash, sizeof hash);
            _exit(0);
        }
        close(sockets[1]);
        receive_bytes(sockets[0], &hash, sizeof hash);
        close(sockets[0]);
        wait_for(child);
        printf("RESULT processes child=%d hash=%016llx\n", i, (unsigned long long)hash);
    }
    run_threads();
    printf("RESULT processes own=%016llx\n", (unsigned long long)hm_hash(hashes, sizeof hashes));
    fflush(stdout);
    execl("/proc/self/exe", argv[0], "after-exec", (char *)NULL);
    hm_die("exec failed");
}
