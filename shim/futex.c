#include "futex.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000
#define SYSCALL_WAITV 449 /* since Linux 5.16; the same on every architecture */
#define WAITV_32 2        /* of the word's size, in shared memory */
#define MOST_WATCHES 128  /* the kernel's limit */
#define LOOK_AGAIN_NS 1000000
#define PROCESSORS_TO_SPARE 8
#define QUOTA "/sys/fs/cgroup/cpu.max" /* of cgroup v2, where a container sees its own */

struct waiter { /* the kernel's struct futex_waitv, which older headers lack */
    uint64_t value, address;
    uint32_t flags, reserved;
};

uint64_t
hm_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static struct timespec
timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS};
}

void
hm_futex_wait(const uint32_t *word, uint32_t value, int64_t timeout_ns)
{
    struct timespec time = timespec_of(timeout_ns);

    if (timeout_ns <= 0)
        return;
    syscall(SYS_futex, word, FUTEX_WAIT, value, timeout_ns != HM_FOREVER ? &time : NULL, NULL, 0);
}

void
hm_futex_wait_any(const struct hm_watch *watches, int count, int64_t timeout_ns)
{
    struct waiter waiters[MOST_WATCHES];
    static bool missing; /* a kernel without the call; atomic */
    struct timespec until;

    if (timeout_ns <= 0)
        return;
    if (count <= MOST_WATCHES && !__atomic_load_n(&missing, __ATOMIC_RELAXED)) {
        for (int i = 0; i < count; i++)
            waiters[i] = (struct waiter){watches[i].value, (uintptr_t)watches[i].word, WAITV_32, 0};
        if (timeout_ns != HM_FOREVER)
            until = timespec_of((int64_t)hm_now_ns() + timeout_ns);
        if (syscall(SYSCALL_WAITV, waiters, count, 0, timeout_ns != HM_FOREVER ? &until : NULL,
                    CLOCK_MONOTONIC) >= 0 ||
            (errno != ENOSYS && errno != EPERM)) /* EPERM: a container's seccomp filter */
            return;
        __atomic_store_n(&missing, true, __ATOMIC_RELAXED);
    }
    hm_futex_wait(watches[0].word, watches[0].value,
                  timeout_ns < LOOK_AGAIN_NS ? timeout_ns : LOOK_AGAIN_NS);
}

void
hm_futex_wake(const uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void
hm_futex_ring(uint32_t *word)
{
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    hm_futex_wake(word);
}

bool
hm_may_spin(void)
{
    char quota[4] = "max";
    cpu_set_t processors;
    int fd = open(QUOTA, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (read(fd, quota, 3) != 3)
            quota[0] = '\0';
        close(fd);
    }
    return strcmp(quota, "max") == 0 &&
           sched_getaffinity(0, sizeof(processors), &processors) == 0 &&
           CPU_COUNT(&processors) >= PROCESSORS_TO_SPARE;
}
