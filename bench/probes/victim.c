/*
 * A process to be killed: victim MODE [FILE INDEX [BYTES]].
 *
 * loop: allocates and frees for ever. threads: the same in four threads. exec: makes a context,
 * allocates, then becomes itself anew, for ever. fork: forks first, the child loops, the parent
 * too. hold: survives: FILE has one 8-byte word for each INDEX, counted up after each allocation
 * (the heartbeat), and a word 0 that ends the beating; from then on it holds just BYTES. once:
 * makes a context, allocates once and ends by itself: the next start.
 */
#include "driver.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MIB (1024ull * 1024)

static CUcontext context;

static void *
loop(void *unused)
{
    CUdeviceptr ptrs[8] = {0};

    (void)unused;
    CHECK(cu.cuCtxSetCurrent(context));
    for (unsigned turn = 0;; turn++) {
        CUdeviceptr *ptr = &ptrs[turn % 8];

        if (*ptr != 0)
            CHECK(cu.cuMemFree(*ptr));
        if (cu.cuMemAlloc(ptr, (2 + turn % 31) * MIB) != CUDA_SUCCESS)
            *ptr = 0;
    }
    return NULL;
}

static void
run_threads(void)
{
    pthread_t thread;

    for (int i = 0; i < 3; i++) {
        if (pthread_create(&thread, NULL, loop, NULL) != 0)
            hm_die("no thread");
    }
    loop(NULL);
}

static void
run_exec(char **argv)
{
    CUdeviceptr ptr;

    if (cu.cuMemAlloc(&ptr, 64 * MIB) != CUDA_SUCCESS)
        hm_sleep_ms(1);
    execv("/proc/self/exe", argv);
    hm_die("exec failed");
}

static void
run_hold(char **argv)
{
    int fd = open(argv[2], O_RDWR);
    int index = atoi(argv[3]);
    size_t bytes = strtoull(argv[4], NULL, 10);
    _Atomic uint64_t *words =
        fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CUdeviceptr held, beat;

    if (words == MAP_FAILED)
        hm_die("%s cannot be mapped", argv[2]);
    CHECK(cu.cuMemAlloc(&held, bytes));
    while (atomic_load(&words[0]) == 0) {
        if (cu.cuMemAlloc(&beat, 2 * MIB) == CUDA_SUCCESS)
            CHECK(cu.cuMemFree(beat));
        atomic_fetch_add(&words[index], 1);
        hm_sleep_ms(2);
    }
    for (;;)
        pause();
}

int
main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "loop";
    pid_t parent = getpid();
    CUdeviceptr ptr;
    CUdevice device;

    if (strcmp(mode, "fork") == 0 && fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* the storm kills only pids that it knows */
        if (getppid() != parent)
            return 0;
    }
    context = hm_start(&device);
    if (strcmp(mode, "threads") == 0)
        run_threads();
    else if (strcmp(mode, "exec") == 0)
        run_exec(argv);
    else if (strcmp(mode, "hold") == 0 && argc > 4)
        run_hold(argv);
    else if (strcmp(mode, "once") == 0)
        CHECK(cu.cuMemAlloc(&ptr, 2 * MIB));
    else
        loop(NULL);
    return 0;
}
