/*
 * Many processes and threads at the cap: stress FILE PROCESSES THREADS SECONDS [SEED [KIND]].
 * Starts the workers, waits, and prints one JSON object. FILE (zeros, one page or more) is shared
 * with whoever measures from outside: it waits for `ready` to reach PROCESSES, reads the overhead
 * from NVML, writes `limit_bytes` (cap - overhead - 64 MiB) and then 1 to `go`; once `finished` has
 * reached PROCESSES and everything is free again, it may look again and writes 2 to `go`.
 *
 * `live` counts a block from after its allocation returned until before its free, so the tenant
 * holds at least that much: above the cap it is a breach. Refusals are judged by refusals.h; for
 * that, requests are whole 2 MiB blocks, so that what is asked is what the card gives. KIND malloc
 * (default) is judged. KIND pools takes all from pools, whose unused rest belongs to no request, KIND mixed every other
 * thread's: they are not.
 */
#include "driver.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "refusals.h"

#define MIB (1024ull * 1024)
#define BLOCK (2 * MIB)
#define MAX_SLOTS 64
#define MAX_HELD 256
#define MAX_BLOCKS 64         /* of one request: 128 MiB */
#define CLOSE_BLOCKS 32       /* 64 MiB */
#define MAX_EVENTS (1u << 17) /* of one thread */

/* One writer: the slot's thread. */
struct slot {
    uint64_t allocations, frees, refusals, errors, last_error;
    uint64_t worst_alloc_ns, worst_refusal_ns, worst_free_ns;
    uint64_t event_count, not_logged;
    struct event events[MAX_EVENTS];
};

struct shared {
    /* These four are read and written from outside, in this order, as 8-byte words. */
    _Atomic uint64_t limit_bytes;
    _Atomic uint64_t ready;
    _Atomic uint64_t go;
    _Atomic uint64_t finished;
    _Atomic uint64_t live, live_max;
    struct slot slots[MAX_SLOTS];
};

struct held {
    CUdeviceptr ptr;
    uint64_t bytes;
    struct event *event; /* NULL where it is not logged */
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
larger(uint64_t one, uint64_t other)
{
    return one > other ? one : other;
}

static uint64_t
next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* The next entry of the log, NULL where it is full or nothing is judged yet. */
static struct event *
log_start(struct slot *slot, uint64_t bytes)
{
    struct event *event;

    if (atomic_load(&shared->go) == 0)
        return NULL;
    if (slot->event_count == MAX_EVENTS) {
        slot->not_logged++;
        return NULL;
    }
    event = &slot->events[slot->event_count++];
    event->blocks = (uint32_t)(bytes / BLOCK);
    event->start_ns = hm_now_ns();
    return event;
}

static void
log_end(struct event *event, bool granted)
{
    if (event == NULL)
        return;
    event->granted = granted;
    event->end_ns = hm_now_ns();
}

/* False: refused, or failed. */
static bool
allocate(struct slot *slot, struct held *held, CUstream stream)
{
    uint64_t start_ns = hm_now_ns();
    CUresult code;

    held->event = log_start(slot, held->bytes);
    code = held->pooled ? cu.cuMemAllocAsync(&held->ptr, held->bytes, stream)
                        : cu.cuMemAlloc(&held->ptr, held->bytes);
    if (code == CUDA_SUCCESS) {
        raise_to(&shared->live_max, atomic_fetch_add(&shared->live, held->bytes) + held->bytes);
        slot->allocations++;
        slot->worst_alloc_ns = larger(slot->worst_alloc_ns, hm_now_ns() - start_ns);
        return true;
    }
    log_end(held->event, false);
    if (code == CUDA_ERROR_OUT_OF_MEMORY) {
        slot->refusals++;
        slot->worst_refusal_ns = larger(slot->worst_refusal_ns, hm_now_ns() - start_ns);
    } else {
        slot->errors++;
        slot->last_error = code;
    }
    return false;
}

static void
release(struct slot *slot, const struct held *held, CUstream stream)
{
    uint64_t start_ns = hm_now_ns();
    CUresult code;

    atomic_fetch_sub(&shared->live, held->bytes);
    code = held->pooled ? cu.cuMemFreeAsync(held->ptr, stream) : cu.cuMemFree(held->ptr);
    if (held->pooled && code == CUDA_SUCCESS)
        code = cu.cuStreamSynchronize(stream);
    log_end(held->event, true);
    slot->frees++;
    slot->worst_free_ns = larger(slot->worst_free_ns, hm_now_ns() - start_ns);
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
    int count = 0;

    CHECK(cu.cuCtxSetCurrent(worker->context));
    while (hm_now_ns() < deadline_ns) {
        struct held *next = &held[count];

        next->bytes = (next_random(&worker->random) % MAX_BLOCKS + 1) * BLOCK;
        next->pooled = worker->pooled;
        if (count < MAX_HELD - 1 && allocate(slot, next, worker->stream)) {
            count++;
            if (next_random(&worker->random) % 4 != 0)
                continue;
        }
        for (int give = (int)(next_random(&worker->random) % 4); give > 0 && count > 0; give--) {
            int which = (int)(next_random(&worker->random) % (unsigned)count);

            release(slot, &held[which], worker->stream);
            held[which] = held[--count];
        }
    }
    while (count > 0)
        release(slot, &held[--count], worker->stream);
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

/* What a first allocation and streams load belongs to the overhead, which is measured at `ready`. */
static void
prepare(struct worker *workers, int process, int threads, uint64_t seed, int pooled_every)
{
    struct held warm = {.bytes = BLOCK};
    CUdevice device;
    CUcontext context = hm_start(&device);

    for (int i = 0; i < threads; i++) {
        workers[i].index = process * threads + i;
        workers[i].pooled = pooled_every > 0 && i % pooled_every == pooled_every - 1;
        workers[i].random = seed * 1000003 + (uint64_t)workers[i].index * 7919 + 1;
        workers[i].context = context;
        CHECK(cu.cuStreamCreate(&workers[i].stream, CU_STREAM_NON_BLOCKING));
    }
    for (int pooled = 0; pooled <= (pooled_every > 0); pooled++) {
        struct slot *slot = &shared->slots[workers[0].index];

        warm.pooled = pooled != 0;
        if (allocate(slot, &warm, workers[0].stream))
            release(slot, &warm, workers[0].stream);
    }
}

static int
run_worker(int process, int threads, double seconds, uint64_t seed, int pooled_every)
{
    struct worker workers[MAX_SLOTS] = {0};

    prepare(workers, process, threads, seed, pooled_every);
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
    for (int waited_ms = 0; atomic_load(&shared->go) < 2 && waited_ms < 30000; waited_ms++)
        hm_sleep_ms(1);
    return 0;
}

static void
judge(struct refusals *found)
{
    uint64_t limit_blocks = atomic_load(&shared->limit_bytes) / BLOCK;
    struct history history = {0};
    size_t events = 0;

    for (int i = 0; i < slot_count; i++)
        events += shared->slots[i].event_count;
    history.changes = calloc(2 * events + 1, sizeof *history.changes);
    history.tree = calloc(4 * events + 2, sizeof *history.tree);
    if (history.changes == NULL || history.tree == NULL)
        hm_die("no memory to judge %zu calls", events);
    for (int i = 0; i < slot_count; i++) {
        for (size_t k = 0; k < shared->slots[i].event_count; k++)
            history_add(&history, &shared->slots[i].events[k]);
    }
    history_close(&history);
    for (int i = 0; i < slot_count; i++) {
        for (size_t k = 0; k < shared->slots[i].event_count; k++)
            refusal_judge(found, &history, &shared->slots[i].events[k], limit_blocks, CLOSE_BLOCKS);
    }
    free(history.changes);
    free(history.tree);
}

static void
print_count(const char *name, uint64_t value)
{
    printf("\"%s\": %llu, ", name, (unsigned long long)value);
}

static void
print_result(int failed)
{
    uint64_t allocations = 0, frees = 0, refused = 0, errors = 0, last_error = 0, not_logged = 0;
    uint64_t worst_alloc_ns = 0, worst_refusal_ns = 0, worst_free_ns = 0;
    struct refusals found = {0};

    for (int i = 0; i < slot_count; i++) {
        const struct slot *slot = &shared->slots[i];

        allocations += slot->allocations;
        frees += slot->frees;
        refused += slot->refusals;
        errors += slot->errors;
        last_error = slot->errors != 0 ? slot->last_error : last_error;
        not_logged += slot->not_logged;
        worst_alloc_ns = larger(worst_alloc_ns, slot->worst_alloc_ns);
        worst_refusal_ns = larger(worst_refusal_ns, slot->worst_refusal_ns);
        worst_free_ns = larger(worst_free_ns, slot->worst_free_ns);
    }
    judge(&found);
    printf("HMRESULT {");
    print_count("failed_processes", (uint64_t)failed);
    print_count("allocations", allocations);
    print_count("frees", frees);
    print_count("refusals", refused);
    print_count("judged_refusals", found.judged);
    print_count("close_refusals", found.close);
    print_count("wrong_refusals", found.count);
    print_count("not_logged", not_logged);
    print_count("errors", errors);
    print_count("last_error", last_error);
    print_count("live_max_bytes", atomic_load(&shared->live_max));
    print_count("live_end_bytes", atomic_load(&shared->live));
    print_count("worst_alloc_ns", worst_alloc_ns);
    print_count("worst_refusal_ns", worst_refusal_ns);
    print_count("worst_free_ns", worst_free_ns);
    print_count("limit_bytes", atomic_load(&shared->limit_bytes));
    printf("\"wrong\": [");
    for (uint64_t i = 0; i < found.count && i < REFUSALS_KEPT; i++) {
        const struct wrong *wrong = &found.kept[i];

        printf("%s{\"asked_bytes\": %llu, \"held_bytes\": %llu, \"call_ns\": %llu}",
               i == 0 ? "" : ", ", (unsigned long long)(wrong->asked_blocks * BLOCK),
               (unsigned long long)(wrong->held_blocks * BLOCK),
               (unsigned long long)wrong->call_ns);
    }
    printf("]}\n");
}

int
main(int argc, char **argv)
{
    int processes, threads, failed = 0;
    double seconds;
    uint64_t seed;
    int pooled_every = 0;

    if (argc < 5)
        hm_die("usage: stress FILE PROCESSES THREADS SECONDS [SEED [KIND]]");
    processes = atoi(argv[2]);
    threads = atoi(argv[3]);
    seconds = atof(argv[4]);
    seed = argc > 5 ? strtoull(argv[5], NULL, 10) : 1;
    if (argc > 6)
        pooled_every = strcmp(argv[6], "mixed") == 0 ? 2 : strcmp(argv[6], "pools") == 0 ? 1 : 0;
    slot_count = processes * threads;
    if (slot_count < 1 || slot_count > MAX_SLOTS)
        hm_die("at most %d threads in all", MAX_SLOTS);
    map_file(argv[1]);
    for (int i = 0; i < processes; i++) {
        pid_t child = fork();

        if (child == 0)
            exit(run_worker(i, threads, seconds, seed, pooled_every));
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
