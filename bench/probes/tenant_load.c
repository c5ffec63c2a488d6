/*
 * A tenant's processes for bench/supervisor.py:
 *
 * tenant_load idle COUNT BYTES: COUNT processes with a context that hold BYTES each and do nothing;
 * each prints "ready".
 * tenant_load poll BYTES: asks for BYTES again and again, gives them back, and prints each change of
 * the answer: "granted" or "refused", and between which CLOCK_MONOTONIC nanoseconds that call was.
 * tenant_load churn COUNT BYTES: COUNT processes that fill the cap with allocations of up to BYTES
 * and free some, until SIGTERM; prints HMRESULT.
 */
#include "driver.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1024ull * 1024)
#define MOST_PROCESSES 64
#define MOST_HELD 1024

/* What a process of churn saw; it alone writes it. */
struct seen {
    _Atomic uint64_t granted, refused, errors, longest_call_ns, longest_gap_ns;
};

struct shared {
    _Atomic bool over;
    struct seen seen[MOST_PROCESSES];
};

static struct shared *shared;

static void
end(int number)
{
    (void)number;
    atomic_store(&shared->over, true);
}

/* Forks count - 1 children, before the driver is loaded; they end with their parent. */
static int
multiply(int count)
{
    pid_t parent = getpid();

    for (int i = 1; i < count; i++) {
        pid_t child = fork();

        if (child < 0)
            hm_die("no process");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            return i;
        }
    }
    return 0;
}

static void
run_idle(int count, size_t bytes)
{
    CUdeviceptr ptr;
    CUdevice device;

    multiply(count);
    hm_start(&device);
    CHECK(cu.cuMemAlloc(&ptr, bytes));
    printf("ready\n");
    fflush(stdout);
    for (;;)
        pause();
}

static void
run_poll(size_t bytes)
{
    const char *last = "";
    CUdevice device;

    hm_start(&device);
    for (;;) {
        CUdeviceptr ptr;
        uint64_t before = hm_now_ns();
        CUresult code = cu.cuMemAlloc(&ptr, bytes);
        uint64_t after = hm_now_ns();
        const char *answer = code == CUDA_SUCCESS ? "granted" : "refused";

        if (code != CUDA_SUCCESS && code != CUDA_ERROR_OUT_OF_MEMORY)
            hm_die("cuMemAlloc: %s", hm_error(code));
        if (code == CUDA_SUCCESS)
            CHECK(cu.cuMemFree(ptr));
        if (strcmp(answer, last) != 0) {
            printf("%s %llu %llu\n", answer, (unsigned long long)before, (unsigned long long)after);
            fflush(stdout);
        }
        last = answer;
        usleep(200);
    }
}

static void
raise_to(_Atomic uint64_t *most, uint64_t value)
{
    if (value > atomic_load(most))
        atomic_store(most, value);
}

static void
churn(struct seen *seen, size_t most_bytes, unsigned seed)
{
    CUdeviceptr held[MOST_HELD];
    uint64_t last;
    CUdevice device;
    int count = 0;

    hm_start(&device);
    last = hm_now_ns();
    while (!atomic_load(&shared->over)) {
        bool refused = false;
        uint64_t before = hm_now_ns(), after;

        if (count < MOST_HELD && rand_r(&seed) % 8 != 0) {
            size_t bytes = ((size_t)rand_r(&seed) * 512) % most_bytes + 1;
            CUresult code = cu.cuMemAlloc(&held[count], bytes);

            refused = code == CUDA_ERROR_OUT_OF_MEMORY;
            if (code == CUDA_SUCCESS)
                count++;
            atomic_fetch_add(refused                ? &seen->refused
                             : code == CUDA_SUCCESS ? &seen->granted
                                                    : &seen->errors,
                             1);
        } else if (count > 0) {
            int index = (int)((unsigned)rand_r(&seed) % (unsigned)count);

            if (cu.cuMemFree(held[index]) != CUDA_SUCCESS)
                atomic_fetch_add(&seen->errors, 1);
            held[index] = held[--count];
        }
        after = hm_now_ns();
        raise_to(&seen->longest_call_ns, after - before);
        raise_to(&seen->longest_gap_ns, after - last);
        last = after;
        for (int give = refused ? (count + 1) / 4 : 0; give > 0; give--)
            if (cu.cuMemFree(held[--count]) != CUDA_SUCCESS)
                atomic_fetch_add(&seen->errors, 1);
        usleep(5000);
    }
}

static int
run_churn(int count, size_t most_bytes)
{
    struct seen sum = {0};
    int index, status, failed = 0;

    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || count > MOST_PROCESSES)
        hm_die("no room for what %d processes see", count);
    signal(SIGTERM, end);
    index = multiply(count);
    churn(&shared->seen[index], most_bytes, (unsigned)getpid());
    if (index != 0)
        return 0;
    while (wait(&status) > 0)
        failed += status != 0;
    for (int i = 0; i < count; i++) {
        struct seen *seen = &shared->seen[i];

        sum.granted += seen->granted;
        sum.refused += seen->refused;
        sum.errors += seen->errors;
        raise_to(&sum.longest_call_ns, seen->longest_call_ns);
        raise_to(&sum.longest_gap_ns, seen->longest_gap_ns);
    }
    printf("HMRESULT {\"processes\": %d, \"failed_processes\": %d, \"granted\": %llu, \"refused\": "
           "%llu, "
           "\"errors\": %llu, \"longest_call_ns\": %llu, \"longest_gap_ns\": %llu}\n",
           count, failed, (unsigned long long)sum.granted, (unsigned long long)sum.refused,
           (unsigned long long)sum.errors, (unsigned long long)sum.longest_call_ns,
           (unsigned long long)sum.longest_gap_ns);
    return failed != 0;
}

int
main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    if (strcmp(mode, "idle") == 0 && argc == 4)
        run_idle(atoi(argv[2]), strtoull(argv[3], NULL, 10));
    else if (strcmp(mode, "poll") == 0 && argc == 3)
        run_poll(strtoull(argv[2], NULL, 10));
    else if (strcmp(mode, "churn") == 0 && argc == 4)
        return run_churn(atoi(argv[2]), strtoull(argv[3], NULL, 10));
    hm_die("usage: tenant_load idle COUNT BYTES | poll BYTES | churn COUNT BYTES");
}
