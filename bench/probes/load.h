/*
 * The file that load.c shares with bench/share_load.py, which has the same numbers: the job that it is
 * given, and the account that it keeps of its work.
 */
#ifndef HM_BENCH_LOAD_H
#define HM_BENCH_LOAD_H
#include "driver.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

enum word {
    /* written by the load */
    PID,      /* 0: it takes no jobs yet */
    FINISHED, /* the number of the last job that came to its end */
    SAMPLES,  /* ever */
    REQUESTS, /* ever */
    /* written by the bench; JOB last, with a new number */
    JOB = 16,
    LENGTH_NS, /* of a kernel; 0: an empty one of one thread */
    KERNELS,   /* of a unit */
    GRAPH,     /* 1: the unit is a graph */
    DEPTH,     /* units queued; 1: each is waited for */
    THREADS,
    EVERY_NS, /* 0: as fast as it goes */
    FROM_NS,  /* CLOCK_MONOTONIC */
    UNTIL_NS,
    QUIT,
    SMALL, /* empty kernels before each unit, which the program makes ready one by one */
};
#define WORDS 512
#define SAMPLES_KEPT 32768
#define REQUESTS_KEPT 8192

#define READY_NS 220000    /* for each small kernel */
#define EMPTY_NS 1000      /* what an empty kernel counts as work */
#define PERIOD_NS 10000000 /* between samples */
#define PAUSE_NS 1000000   /* a longer pause in the work is noted with its beginning and end */
#define HELD_NS 300000     /* a shorter one counts as holding the card */

/* What was done, ever, when a unit ended at `at_ns`. */
struct sample {
    uint64_t at_ns, work_ns, kernels;
    uint64_t
        held_ns; /* on the card or in a pause under HELD_NS: means something for a load that is alone */
};
struct request {
    uint64_t at_ns, took_ns;
};

static struct {
    _Atomic uint64_t words[WORDS];
    struct sample samples[SAMPLES_KEPT];
    struct request requests[REQUESTS_KEPT];
    struct sample total; /* of all processes that this file ever had */
} *shared;

static pthread_mutex_t account_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t sampled_ns;

static inline uint64_t
word(enum word name)
{
    return atomic_load_explicit(&shared->words[name], memory_order_acquire);
}

static inline void
set_word(enum word name, uint64_t value)
{
    atomic_store_explicit(&shared->words[name], value, memory_order_release);
}

static inline void
map_shared(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0 || ftruncate(fd, sizeof(*shared)) != 0)
        hm_die("%s: no room for what is shared", path);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        hm_die("%s cannot be mapped", path);
    close(fd);
}

/* Notes the totals as of `at_ns`. */
static inline void
push_sample(uint64_t at_ns)
{
    uint64_t count = word(SAMPLES);
    struct sample *sample = &shared->samples[count % SAMPLES_KEPT];

    *sample = shared->total;
    sample->at_ns = at_ns;
    set_word(SAMPLES, count + 1);
    sampled_ns = at_ns;
}

/* Nothing was done up to now. */
static inline void
begin_account(void)
{
    shared->total.at_ns = hm_now_ns();
    push_sample(shared->total.at_ns);
}

/*
 * A unit ended at `at_ns`, by the card's clock: its work was done since it was launched or the one
 * before it ended. The thread that counts may come to it much later, held back in a launch.
 */
static inline void
count_unit(uint64_t launched_ns, uint64_t at_ns)
{
    struct sample *total = &shared->total;
    uint64_t now, start, count = word(KERNELS), length = word(LENGTH_NS);

    pthread_mutex_lock(&account_lock);
    now = at_ns > total->at_ns ? at_ns
                               : total->at_ns; /* another stream's may have been counted first */
    start = launched_ns > total->at_ns ? launched_ns : total->at_ns;
    start = start < now ? start : now;
    if (start - total->at_ns > PAUSE_NS) {
        if (sampled_ns < total->at_ns)
            push_sample(total->at_ns);
        push_sample(start);
    }
    total->held_ns += now - (start - total->at_ns < HELD_NS ? total->at_ns : start);
    total->work_ns += count * (length > 0 ? length : EMPTY_NS);
    total->kernels += count;
    total->at_ns = now;
    if (now - sampled_ns >= PERIOD_NS)
        push_sample(now);
    pthread_mutex_unlock(&account_lock);
}

static inline void
note_request(uint64_t at_ns, uint64_t took_ns)
{
    uint64_t count = word(REQUESTS);

    shared->requests[count % REQUESTS_KEPT] = (struct request){at_ns, took_ns};
    set_word(REQUESTS, count + 1);
}

#endif
