/*
 * Many processes and threads at the cap: stress FILE PROCESSES THREADS SECONDS [SEED [KIND]].
 * Starts the workers, waits, and prints one JSON object. FILE (zeros, one page or more) is shared
 * with whoever measures from outside: it waits for `ready` to reach PROCESSES, reads the overhead
 * from NVML, writes `limit_bytes` and then 1 to `go`; once `finished` has reached PROCESSES and
 * everything is free again, it may look again and writes 2 to `go`.
 *
 * The oracle. Two sums over all threads: `upper` counts a request from before its call until after
 * its free returned, `live` from after its call until before its free. What any correct ledger
 * holds lies between them. So `live` above the cap's room is a breach; and a refusal is wrong if
 * `upper`, the refused request included, stayed within `limit_bytes` (cap - overhead - 64 MiB)
 * during the whole call: whoever raises `upper` raises the window of every call under way. KIND
 * malloc (default) asks in whole 2 MiB blocks, so a request is what the card gives. KIND mixed adds
 * pools, whose unused rest belongs to no request: then refusals are counted but not judged.
 */
#include "driver.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1024ull * 1024)
#define BLOCK (2 * MIB)
#define MAX_SLOTS 64
#define MAX_HELD 256
#define MAX_BLOCKS 64 /* of one request: 128 MiB */
#define WRONG_KEPT 32

struct wrong {
    uint64_t asked, window, limit;
};

struct slot {
    _Atomic uint64_t window; /* highest `upper` seen during the call under way */
    _Atomic uint32_t active;
    uint32_t unused;
    /* The rest has one writer, the slot's thread. */
    uint64_t allocations, frees, refusals, wrong, errors, last_error;
    uint64_t worst_alloc_ns, worst_refusal_ns, worst_free_ns;
};

struct shared {
    /* These four are read and written from outside, in this order, as 8-byte words. */
    _Atomic uint64_t limit_bytes;
    _Atomic uint64_t ready;
    _Atomic uint64_t go;
    _Atomic uint64_t finished;
    _Atomic uint64_t upper, live, live_max;
    _Atomic uint64_t wrong_count;
    struct wrong wrong[WRONG_KEPT];
    struct slot slots[MAX_SLOTS];
};

struct held {
    CUdeviceptr ptr;
    uint64_t bytes;
    bool pooled;
};

struct worker {
    pthread_t thread;
    int index;
    bool pooled;
    uint64_t random;
    CUcontext context;
    CUstream stream;
};

static struct shared *shared;
static int slot_count;
static uint64_t deadline_ns;

static void
raise_to(_Atomic uint64_t *value, uint64_t candidate)
{
    uint64_t seen = atomic_load(value);

    while (seen < candidate && !atomic_compare_exchange_weak(value, &seen, candidate))
        ;
}

static uint64_t
next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/*
 * Counts a request as under way. All operations are sequentially consistent: the argument above
 * rests on it.
 */
static void
window_open(struct slot *slot, uint64_t bytes)
{
    uint64_t now;

    atomic_store(&slot->window, 0);
    atomic_store(&slot->active, 1);
    now = atomic_fetch_add(&shared->upper, bytes) + bytes;
    for (int i = 0; i < slot_count; i++) {
        if (atomic_load(&shared->slots[i].active))
            raise_to(&shared->slots[i].window, now);
    }
}

static uint64_t
window_close(struct slot *slot)
{
    atomic_store(&slot->active, 0);
    return atomic_load(&slot->window);
}

static void
note_refusal(struct slot *slot, uint64_t asked, uint64_t window)
{
    uint64_t limit = atomic_load(&shared->limit_bytes), at;

    slot->refusals++;
    if (window > limit)
        return;
    slot->wrong++;
    at = atomic_fetch_add(&shared->wrong_count, 1);
    if (at < WRONG_KEPT)
        shared->wrong[at] = (struct wrong){asked, window, limit};
}

static void
note_worst(uint64_t *worst, uint64_t start_ns)
{
    uint64_t took = hm_now_ns() - start_ns;

    if (took > *worst)
        *worst = took;
}

/* False: refused, or failed. */
static bool
allocate(struct slot *slot, struct held *held, CUstream stream)
{
    uint64_t start = hm_now_ns(), window;
    CUresult code;

    window_open(slot, held->bytes);
    code = held->pooled ? cu.cuMemAllocAsync(&held->ptr, held->bytes, stream)
                        : cu.cuMemAlloc(&held->ptr, held->bytes);
    window = window_close(slot);
    if (code == CUDA_SUCCESS) {
        raise_to(&shared->live_max, atomic_fetch_add(&shared->live, held->bytes) + held->bytes);
        slot->allocations++;
        note_worst(&slot->worst_alloc_ns, start);
        return true;
    }
    atomic_fetch_sub(&shared->upper, held->bytes);
    if (code == CUDA_ERROR_OUT_OF_MEMORY) {
        note_refusal(slot, held->bytes, window);
        note_worst(&slot->worst_refusal_ns, start);
    } else {
        slot->errors++;
        slot->last_error = code;
    }
    return false;
}

static void
release(struct slot *slot, const struct held *held, CUstream stream)
{
    uint64_t start = hm_now_ns();
    CUresult code;

    atomic_fetch_sub(&shared->live, held->bytes);
    code = held->pooled ? cu.cuMemFreeAsync(held->ptr, stream) : cu.cuMemFree(held->ptr);
    if (held->pooled && code == CUDA_SUCCESS)
        code = cu.cuStreamSynchronize(stream);
    atomic_fetch_sub(&shared->upper, held->bytes);
    slot->frees++;
    note_worst(&slot->worst_free_ns, start);
    if (code != CUDA_SUCCESS) {
        slot->errors++;
        slot->last_error = code;
    }
}

/* Allocates until refused, gives back a random part, and again. */
static void *
work(void *argument)
{
    struct worker *worker = argument;
    struct slot *slot = &shared->slots[worker->index];
    struct held held[MAX_HELD];
    CUstream stream = worker->stream;
    int count = 0;

    CHECK(cu.cuCtxSetCurrent(worker->context));
    while (hm_now_ns() < deadline_ns) {
        struct held *next = &held[count];

        next->bytes = (next_random(&worker->random) % MAX_BLOCKS + 1) * BLOCK;
        next->pooled = worker->pooled;
        if (count < MAX_HELD - 1 && allocate(slot, next, stream)) {
            count++;
            if (next_random(&worker->random) % 4 != 0)
                continue;
        }
        for (int give = (int)(next_random(&worker->random) % 4); give > 0 && count > 0; give--) {
            int which = (int)(next_random(&worker->random) % (unsigned)count);

            release(slot, &held[which], stream);
            held[which] = held[--count];
        }
    }
    while (count > 0)
        release(slot, &held[--count], stream);
    return NULL;
}

static void
map_file(const char *path)
{
    int fd = open(path, O_RDWR);

    if (fd < 0 || ftruncate(fd, sizeof *shared) != 0)
        hm_die("%s cannot be used", path);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        hm_die("%s cannot be mapped", path);
    close(fd);
}

static int
run_worker(int process, int threads, double seconds, uint64_t seed, bool mixed)
{
    struct worker workers[MAX_SLOTS] = {0};
    CUdevice device;
    CUcontext context = hm_start(&device);
    struct held warm = {.bytes = BLOCK};

    for (int i = 0; i < threads; i++) {
        workers[i].index = process * threads + i;
        workers[i].pooled = mixed && i % 2 == 1;
        workers[i].random = seed * 1000003 + (uint64_t)workers[i].index * 7919 + 1;
        workers[i].context = context;
        CHECK(cu.cuStreamCreate(&workers[i].stream, CU_STREAM_NON_BLOCKING));
    }
    /* What a first allocation loads belongs to the overhead. */
    for (int pooled = 0; pooled <= mixed; pooled++) {
        warm.pooled = pooled;
        if (allocate(&shared->slots[process * threads], &warm, workers[0].stream))
            release(&shared->slots[process * threads], &warm, workers[0].stream);
    }
    atomic_fetch_add(&shared->ready, 1);
    while (atomic_load(&shared->go) == 0)
        hm_sleep_ms(1);
    deadline_ns = hm_now_ns() + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            hm_die("no thread");
    }
    for (int i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    atomic_fetch_add(&shared->finished, 1);
    for (int waited_ms = 0; atomic_load(&shared->go) < 2 && waited_ms < 5000; waited_ms++)
        hm_sleep_ms(1);
    return 0;
}

static void
print_result(int failed)
{
    struct slot sum = {0};
    uint64_t kept = atomic_load(&shared->wrong_count);

    for (int i = 0; i < slot_count; i++) {
        const struct slot *slot = &shared->slots[i];

        sum.allocations += slot->allocations;
        sum.frees += slot->frees;
        sum.refusals += slot->refusals;
        sum.wrong += slot->wrong;
        sum.errors += slot->errors;
        sum.last_error = slot->errors != 0 ? slot->last_error : sum.last_error;
        raise_to((_Atomic uint64_t *)&sum.worst_alloc_ns, slot->worst_alloc_ns);
        raise_to((_Atomic uint64_t *)&sum.worst_refusal_ns, slot->worst_refusal_ns);
        raise_to((_Atomic uint64_t *)&sum.worst_free_ns, slot->worst_free_ns);
    }
    printf("HMRESULT {\"failed_processes\": %d, \"allocations\": %llu, \"frees\": %llu, "
           "\"refusals\": %llu, ",
           failed, (unsigned long long)sum.allocations, (unsigned long long)sum.frees,
           (unsigned long long)sum.refusals);
    printf("\"wrong_refusals\": %llu, \"errors\": %llu, \"last_error\": %llu, ",
           (unsigned long long)sum.wrong, (unsigned long long)sum.errors,
           (unsigned long long)sum.last_error);
    printf("\"live_max_bytes\": %llu, \"live_end_bytes\": %llu, ",
           (unsigned long long)shared->live_max, (unsigned long long)shared->live);
    printf("\"worst_alloc_ns\": %llu, \"worst_refusal_ns\": %llu, \"worst_free_ns\": %llu, "
           "\"wrong\": [",
           (unsigned long long)sum.worst_alloc_ns, (unsigned long long)sum.worst_refusal_ns,
           (unsigned long long)sum.worst_free_ns);
    for (uint64_t i = 0; i < kept && i < WRONG_KEPT; i++) {
        const struct wrong *wrong = &shared->wrong[i];

        printf("%s{\"asked_bytes\": %llu, \"window_bytes\": %llu, \"limit_bytes\": %llu}",
               i == 0 ? "" : ", ", (unsigned long long)wrong->asked,
               (unsigned long long)wrong->window, (unsigned long long)wrong->limit);
    }
    printf("]}\n");
}

int
main(int argc, char **argv)
{
    int processes, threads, failed = 0;
    double seconds;
    uint64_t seed;
    bool mixed;

    if (argc < 5)
        hm_die("usage: stress FILE PROCESSES THREADS SECONDS [SEED [KIND]]");
    processes = atoi(argv[2]);
    threads = atoi(argv[3]);
    seconds = atof(argv[4]);
    seed = argc > 5 ? strtoull(argv[5], NULL, 10) : 1;
    mixed = argc > 6 && strcmp(argv[6], "mixed") == 0;
    slot_count = processes * threads;
    if (slot_count < 1 || slot_count > MAX_SLOTS)
        hm_die("at most %d threads in all", MAX_SLOTS);
    map_file(argv[1]);
    for (int i = 0; i < processes; i++) {
        pid_t child = fork();

        if (child == 0)
            exit(run_worker(i, threads, seconds, seed, mixed));
        if (child < 0)
            hm_die("no process");
    }
    for (int i = 0; i < processes; i++) {
        int status;

        if (wait(&status) < 0 || status != 0)
            failed++;
    }
    print_result(failed);
    return 0;
}
