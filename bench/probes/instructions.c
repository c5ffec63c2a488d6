/*
 * Counts the instructions that launches spend in the hook: instructions kernel|graph [capture]. One JSON array with a
 * pair for each launch: instructions from the hook's entry to its exit without those of the driver's own functions, and
 * how many of these it called.
 *
 * A child launches, single-stepped by its parent, which needs no tool and counts the same on every run. Its other threads
 * stand still meanwhile: to them a launch would seem to take milliseconds. With "capture" another stream captures.
 */
#include "driver.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels.h"

#define SESSIONS 4
#define WARM_UP 200 /* after so many the shim knows what a launch costs */
#define LAUNCHES 60 /* of a session; together more work than between two marks */
#define WAITS 2000  /* a hook that takes so many instructions waits for something */
#define MOST_THREADS 16
#define NOT_THERE 77 /* exit status where there is no shim to step through */

#if defined(__x86_64__)
#define PC(regs) ((regs).rip)
#define BREAKPOINT(code) (((code) & ~0xffL) | 0xcc)
#define BREAKPOINT_BYTES 1 /* the program counter is so far behind it when it was hit */
#elif defined(__aarch64__)
#define PC(regs) ((regs).pc)
#define BREAKPOINT(code) (((code) & ~0xffffffffL) | 0xd4200000)
#define BREAKPOINT_BYTES 0
#else
#error "how does this machine return from a function?"
#endif

struct range {
    uint64_t from, to;
};

static pid_t child;
static struct range program, shim, driver;
static pid_t frozen[MOST_THREADS];
static int frozen_count;
static bool printed;

/* The child. */

static CUstream stream;
static CUgraphExec graph;
static struct hm_kernels kernels;

static void
launch(bool with_graph)
{
    if (with_graph)
        CHECK(cu.cuGraphLaunch(graph, stream));
    else
        CHECK(cu.cuLaunchKernel(kernels.empty, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL));
}

static void
make_graph(void)
{
    CUgraph made;

    CHECK(cu.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    launch(false);
    CHECK(cu.cuStreamEndCapture(stream, &made));
    CHECK(cu.cuGraphInstantiateWithFlags(&graph, made, 0));
}

static int
be_stepped(bool with_graph, bool capture)
{
    CUdevice device;
    CUstream other;

    hm_start(&device);
    hm_kernels_load(&kernels);
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    make_graph();
    if (capture)
        CHECK(cu.cuStreamBeginCapture(other, CU_STREAM_CAPTURE_MODE_RELAXED));
    for (int session = 0; session < SESSIONS; session++) {
        for (int i = 0; i < WARM_UP; i++) {
            launch(with_graph);
            if (!capture)
                CHECK(cu.cuStreamSynchronize(stream));
        }
        raise(SIGTRAP);
        for (int i = 0; i < LAUNCHES; i++)
            launch(with_graph);
    }
    return 0;
}

/* Its parent. */

static struct user_regs_struct
registers(void)
{
    struct user_regs_struct regs;
    struct iovec all = {&regs, sizeof(regs)};

    if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &all) != 0)
        hm_die("the child's registers can't be read: %s", strerror(errno));
    return regs;
}

/* Let the child go on until it stops again. Ends with it if it ends. */
static void
go(int request)
{
    int status;

    if (ptrace(request, child, NULL, NULL) != 0 || waitpid(child, &status, __WALL) != child)
        hm_die("the child can't be stepped: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        printf("]\n");
        exit(0);
    }
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
        hm_die("the child ended with status %#x", status);
}

/* The child is at the first instruction of a function: on to where that returns. */
static void
finish_call(void)
{
    struct user_regs_struct regs = registers();
    struct iovec all = {&regs, sizeof(regs)};
#if defined(__x86_64__)
    long back = ptrace(PTRACE_PEEKDATA, child, regs.rsp, NULL);
#else
    long back = (long)regs.regs[30];
#endif
    long code = ptrace(PTRACE_PEEKTEXT, child, back, NULL);

    ptrace(PTRACE_POKETEXT, child, back, BREAKPOINT(code));
    go(PTRACE_CONT);
    ptrace(PTRACE_POKETEXT, child, back, code);
    regs = registers();
    PC(regs) -= BREAKPOINT_BYTES;
    if (PC(regs) != (uint64_t)back)
        hm_die("the driver's function did not return to where it was called");
    ptrace(PTRACE_SETREGSET, child, NT_PRSTATUS, &all);
}

static bool
within(struct range range, uint64_t pc)
{
    return pc >= range.from && pc < range.to;
}

static void
find_ranges(void)
{
    char path[64], line[512], own[256];
    ssize_t length = readlink("/proc/self/exe", own, sizeof(own) - 1);
    FILE *maps;

    own[length > 0 ? length : 0] = '\0';
    snprintf(path, sizeof(path), "/proc/%d/maps", child);
    maps = fopen(path, "r");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        struct range range;
        char rights[8];

        line[strcspn(line, "\n")] = '\0';
        if (sscanf(line, "%lx-%lx %7s", &range.from, &range.to, rights) != 3 || rights[2] != 'x')
            continue;
        if (strstr(line, "/libhamirt.so") != NULL)
            shim = range;
        else if (strstr(line, "/libcuda.so") != NULL)
            driver = range;
        else if (strstr(line, own) != NULL)
            program = range;
    }
    if (maps != NULL)
        fclose(maps);
    if (driver.to == 0 || program.to == 0)
        hm_die("the child's code was not found");
    if (shim.to == 0) {
        fprintf(stderr, "there is no shim to step through: run this in a tenant\n");
        exit(NOT_THERE);
    }
}

/* Stop a thread where it is asleep, and so holds no lock that a launch needs. */
static bool
freeze(pid_t thread)
{
    char path[64], text[32] = "";
    FILE *file;

    if (ptrace(PTRACE_SEIZE, thread, NULL, NULL) != 0)
        return errno == ESRCH; /* it has ended */
    ptrace(PTRACE_INTERRUPT, thread, NULL, NULL);
    waitpid(thread, NULL, __WALL);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", child, thread);
    file = fopen(path, "r");
    if (file != NULL && fgets(text, sizeof(text), file) == NULL)
        text[0] = '\0';
    if (file != NULL)
        fclose(file);
    if (text[0] == '-' || text[0] == 'r') { /* in no system call, or running */
        ptrace(PTRACE_DETACH, thread, NULL, NULL);
        return false;
    }
    frozen[frozen_count++] = thread;
    return true;
}

static void
freeze_others(void)
{
    char path[64];
    struct dirent *entry;
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", child);
    tasks = opendir(path);
    while (tasks != NULL && (entry = readdir(tasks)) != NULL && frozen_count < MOST_THREADS) {
        pid_t thread = atoi(entry->d_name);

        while (thread > 0 && thread != child && !freeze(thread))
            usleep(100);
    }
    if (tasks != NULL)
        closedir(tasks);
}

static void
thaw(void)
{
    while (frozen_count > 0)
        ptrace(PTRACE_DETACH, frozen[--frozen_count], NULL, NULL);
}

/* Step through one launch, and print what it took if it counts. False: the hook waits, for what has to be thawed first. */
static bool
step_launch(bool counts)
{
    int inside = 0, calls = 0;

    for (;;) {
        uint64_t pc;

        go(PTRACE_SINGLESTEP);
        pc = PC(registers());
        if (within(driver, pc) && inside > 0) {
            calls++;
            finish_call();
            inside++; /* where it returned to: not stepped on yet */
        } else if (within(program, pc) && inside > 0) {
            break;
        } else if (within(shim, pc) || inside > 0) {
            if (++inside > WAITS)
                return false;
        }
    }
    if (counts) {
        printf("%s[%d, %d]", printed ? ",\n" : "[", inside, calls);
        printed = true;
    }
    return true;
}

static int
step(void)
{
    int status;

    if (waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status))
        hm_die("the child did not start");
    ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_EXITKILL);
    for (int session = 0; session < SESSIONS; session++) {
        go(PTRACE_CONT);
        find_ranges();
        freeze_others();
        /* the first may be one after a pause, which tells the arbiter */
        for (int i = 0; i < LAUNCHES && step_launch(i > 0); i++)
            ;
        thaw();
    }
    go(PTRACE_CONT);
    hm_die("the child goes on");
}

int
main(int argc, char **argv)
{
    bool with_graph = argc > 1 && strcmp(argv[1], "graph") == 0,
         capture = argc > 2 && strcmp(argv[2], "capture") == 0;

    child = fork();
    if (child > 0)
        return step();
    if (child < 0 || ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
        hm_die("no process can be stepped here: %s", strerror(errno));
    raise(SIGTRAP);
    return be_stepped(with_graph, capture);
}
