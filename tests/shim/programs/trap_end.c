/* Ends of processes: of children, and of one whose work is on the card or waits at the gate. */
#include "trap.h"

#include <sys/wait.h>

#define EXIT_CODE 7

static void *
exit_here(void *unused)
{
    (void)unused;
    exit(EXIT_CODE);
}

static int
end_of(pid_t child)
{
    int status;

    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Children that end in every way; none of that is the parent's end, whose work goes on. */
static void
forked(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    pid_t child;

    hear();
    launch_long(stream);
    if ((child = fork()) == 0)
        exit(EXIT_CODE);
    say("exit", (uint64_t)end_of(child));
    if ((child = fork()) == 0)
        pthread_join(begin_thread(exit_here, NULL), NULL);
    say("exit of a thread", (uint64_t)end_of(child));
    if ((child = fork()) == 0)
        execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
    say("exec", (uint64_t)end_of(child));
    hear();
}

static void *
launch_long_there(void *unused)
{
    (void)unused;
    CHECK(cuCtxSetCurrent(primary));
    spin(CU_STREAM_LEGACY, 100 * LONG_NS);
    return NULL;
}

/* The process ends while its work is on the card, or while a thread waits at the gate. */
static void
ends(void)
{
    bool waits = strstr(argument, "waiting") != NULL;

    spin(CU_STREAM_LEGACY, SHORT_NS);
    CHECK(cuCtxSynchronize());
    say("ready", 0);
    hear();
    if (waits)
        begin_thread(launch_long_there, NULL);
    else
        launch_long_there(NULL);
    say("launched", 0);
    hear();
    if (strncmp(argument, "exec", 4) == 0)
        execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
    if (strncmp(argument, "thread", 6) == 0)
        pthread_join(begin_thread(exit_here, NULL), NULL);
    exit(EXIT_CODE);
}

static const struct scenario scenarios[] = {
    {"forked", forked},
    {"ends", ends},
    {NULL, NULL},
};

int
main(int argc, char **argv)
{
    return run_one(scenarios, argc, argv);
}
