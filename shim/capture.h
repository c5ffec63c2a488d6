/*
 * hook_capture.c: which streams capture, that is, record what they are given into a graph instead of running it.
 *
 * What others do at the wrong time would break a capture, so nobody begins one while the lock is held, and under the lock
 * hm_capture_count says for certain whether there is one.
 */
#pragma once
#include "hooks.h"

/* Captures in progress in this process, those that are about to begin included; rather one too many. */
static inline int
hm_capture_count(void)
{
    extern int hm_captures
        __attribute__((visibility("hidden"))); /* changed under the lock, read without */

    return __atomic_load_n(&hm_captures,
                           __ATOMIC_RELAXED); /* who launches into a capture was told of it */
}

/* Whether this stream captures. Asks the driver, for 10 ns and more, only while there is a capture at all. */
bool hm_capture_runs(CUstream stream, bool per_thread);

void hm_capture_lock(void);
void hm_capture_unlock(void);

/* The stream is about to be destroyed, which ends its capture. */
void hm_capture_stream_goes(CUstream stream);

void hm_capture_after_fork_child(void);
