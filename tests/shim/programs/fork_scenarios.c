/*
 * A process that multiplies. argument 1 is the scenario; at each point where somebody should look at the ledger it
 * prints a line and waits for one. `SELF child MIB`: allocates that much and waits.
 */
#include <cuda.h>

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB 1048576ul

extern char **environ;
static char *self;
static volatile bool stop;

static void
must(CUresult result, const char *what)
{
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "%d: %s answered %d\n", (int)getpid(), what, (int)result);
    _exit(10);
}
#define MUST(call) must(call, #call)

static CUdeviceptr
start(size_t mib)
{
    CUcontext context;
    CUdeviceptr pointer = 0;

    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuMemAlloc(&pointer, mib * MIB));
    return pointer;
}

/* Let the test look. */
static void
look(const char *what, long number)
{
    char line[64];

    printf("%s %ld\n", what, number);
    fflush(stdout);
    if (fgets(line, sizeof(line), stdin) == NULL)
        _exit(0);
}

static int
wait_for(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) != pid)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/*
 * A child that allocates mib, or only sleeps, until a byte comes through the gate, also when its parent is gone; the
 * parent hears when it is ready.
 */
static pid_t
child(long mib, int gate[2], bool touch)
{
    int ready[2];
    char byte = 0;
    pid_t pid;

    if (pipe(ready) != 0 || pipe(gate) != 0)
        _exit(11);
    pid = fork();
    if (pid == 0) {
        CUdeviceptr pointer = 0;

        close(gate[1]);
        alarm(60);
        if (mib > 0)
            start((size_t)mib);
        if (touch && cuMemAlloc(&pointer, MIB) == CUDA_SUCCESS)
            _exit(12); /* a driver that was initialized before the fork works in the parent only */
        if (write(ready[1], &byte, 1) != 1)
            _exit(13);
        while (read(gate[0], &byte, 1) != 1)
            pause();
        _exit(0);
    }
    close(gate[0]);
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1)
        printf("the child ended with %d\n", wait_for(pid));
    close(ready[0]);
    return pid;
}

static int
let_go(pid_t pid, int gate[2])
{
    if (write(gate[1], "", 1) != 1)
        return 17;
    return wait_for(pid);
}

static int
before(void)
{
    int gate[2];
    pid_t pid = child(128, gate, false);

    start(64);
    look("both", pid);
    look("parent", let_go(pid, gate));
    return 0;
}

static int
after(bool touch)
{
    int gate[2];
    pid_t pid;

    start(64);
    pid = child(0, gate, touch);
    look("both", pid);
    look("parent", let_go(pid, gate));
    return 0;
}

static int
grandchild(void)
{
    int gate[2], status;
    pid_t pid = fork();

    if (pid == 0) {
        pid_t inner = child(32, gate, false);

        start(64);
        look("three", inner);
        _exit(let_go(inner, gate));
    }
    status = wait_for(pid);
    start(16);
    look("last", status);
    return 0;
}

static void
replace(const char *mib)
{
    char *arguments[] = {self, "child", (char *)mib, NULL};

    execve(self, arguments, environ);
    _exit(14);
}

static int
by_vfork(void)
{
    pid_t pid;

    start(64);
    pid = vfork();
    if (pid == 0)
        replace("32");
    return wait_for(pid);
}

static int
by_spawn(void)
{
    char *arguments[] = {self, "child", "32", NULL};
    pid_t pid;

    start(64);
    if (posix_spawn(&pid, self, NULL, NULL, arguments, environ) != 0)
        return 15;
    return wait_for(pid);
}

static void *
busy(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    CUcontext context;

    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    while (!stop) {
        CUdeviceptr pointer = 0;

        MUST(cuMemAlloc(&pointer, (rand_r(&state) % 64 + 1) * 4096));
        MUST(cuMemFree(pointer));
    }
    return NULL;
}

/* Forks while other threads allocate; the children try the driver too, and must neither hang nor harm. */
static int
threads(int forks)
{
    pthread_t thread[4];
    long failed = 0;

    start(64);
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&thread[i], NULL, busy, (void *)(i + 1));
    for (int i = 0; i < forks; i++) {
        pid_t pid = fork();

        if (pid == 0) {
            CUdeviceptr pointer = 0;
            size_t free_bytes, total;

            alarm(20);
            dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
            cuMemGetInfo(&free_bytes, &total);
            _exit(cuMemAlloc(&pointer, MIB) == CUDA_SUCCESS ? 12 : 0);
        }
        failed += wait_for(pid) != 0;
    }
    stop = true;
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    look("joined", failed);
    return 0;
}

/* Replaces itself a few times, each time with threads in the middle of an allocation. */
static int
replace_often(int times)
{
    char left[16];
    char *arguments[] = {self, times > 1 ? "often" : "child", times > 1 ? left : "32", NULL};
    pthread_t thread;

    snprintf(left, sizeof(left), "%d", times - 1);
    start(64);
    for (uintptr_t i = 0; i < 3; i++)
        pthread_create(&thread, NULL, busy, (void *)(i + 1));
    usleep((useconds_t)(getpid() * 7919 + times * 6151) % 5000);
    execve(self, arguments, environ);
    return 14;
}

static void *
begin(void *unused)
{
    (void)unused;
    start(16);
    return NULL;
}

/* Forks while another thread makes the first call of all. */
static int
during(int forks)
{
    pthread_t thread;
    long failed = 0;

    pthread_create(&thread, NULL, begin, NULL);
    for (int i = 0; i < forks; i++) {
        pid_t pid;

        usleep(500);
        pid = fork();
        if (pid == 0) {
            alarm(20);
            cuInit(0); /* refused or not: it has to answer */
            _exit(0);
        }
        failed += wait_for(pid) != 0;
    }
    pthread_join(thread, NULL);
    look("begun", failed);
    return 0;
}

/* A daemon closes what it does not know, after somebody has asked for the driver and before it is used. */
static int
closes(void)
{
    int fd;

    if (dlsym(RTLD_DEFAULT, "cuMemAlloc_v2") == NULL)
        return 16;
    for (fd = 3; fd < 1024; fd++)
        close(fd);
    while ((fd = dup(0)) >= 0 && fd < 260) /* and now others have its numbers */
        ;
    start(64);
    look("closed", 0);
    return 0;
}

int
main(int count, char **argument)
{
    const char *what = count > 1 ? argument[1] : "";
    int number = count > 2 ? atoi(argument[2]) : 0;

    self = argument[0];
    if (strcmp(what, "child") == 0) {
        start((size_t)number);
        look("child", getpid());
        return 0;
    }
    if (strcmp(what, "before") == 0)
        return before();
    if (strcmp(what, "after") == 0)
        return after(number != 0);
    if (strcmp(what, "grandchild") == 0)
        return grandchild();
    if (strcmp(what, "vfork") == 0)
        return by_vfork();
    if (strcmp(what, "spawn") == 0)
        return by_spawn();
    if (strcmp(what, "exec") == 0) {
        start(64);
        replace("32");
    }
    if (strcmp(what, "threads") == 0)
        return threads(number);
    if (strcmp(what, "often") == 0)
        return replace_often(number);
    if (strcmp(what, "during") == 0)
        return during(number);
    if (strcmp(what, "closes") == 0)
        return closes();
    return 1;
}
