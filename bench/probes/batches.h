/*
 * Timing for the overhead programs: a series is some batches of a fixed number of calls; each batch
 * gives one figure, nanoseconds per call. The series go to stdout as one JSON object: {"name": [ns,
 * ns, ...], ...}.
 */
#ifndef HM_BENCH_BATCHES_H
#define HM_BENCH_BATCHES_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double
hm_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int hm_series_count;

static inline void
hm_print_values(const char *name, const double *values, int count)
{
    printf("%s\"%s\": [", hm_series_count++ == 0 ? "{" : ", ", name);
    for (int i = 0; i < count; i++)
        printf("%s%.2f", i == 0 ? "" : ", ", values[i]);
    printf("]");
}

static inline void
hm_print_value(const char *name, double value)
{
    hm_print_values(name, &value, 1);
}

static inline void
hm_print_end(void)
{
    printf("%s}\n", hm_series_count == 0 ? "{" : "");
}

/*
 * `batches` batches of `calls` calls after two that are not counted. `settle` (may be NULL) empties
 * the queues between batches; with settle_counts it belongs to the time, as for the throughput of
 * launches.
 */
static inline void
hm_series(const char *name, int batches, int calls, void (*call)(void), void (*settle)(void),
          int settle_counts)
{
    double *values = (double *)calloc((size_t)batches, sizeof *values);

    for (int batch = -2; values != NULL && batch < batches; batch++) {
        double start = hm_clock_ns(), end;

        for (int i = 0; i < calls; i++)
            call();
        if (settle != NULL && settle_counts)
            settle();
        end = hm_clock_ns();
        if (settle != NULL && !settle_counts)
            settle();
        if (batch >= 0)
            values[batch] = (end - start) / calls;
    }
    if (values != NULL)
        hm_print_values(name, values, batches);
    free(values);
}

#endif
