/* Time, and waiting for words in memory, shared between processes or not. Also linked into hamirt._region. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define HM_US INT64_C(1000)
#define HM_MS INT64_C(1000000)
#define HM_FOREVER INT64_MAX

static inline int64_t
hm_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t
hm_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

struct hm_watch {
    const uint32_t *word;
    uint32_t value; /* what it was when we looked */
};

/* CLOCK_MONOTONIC, ns. */
uint64_t hm_now_ns(void);

/* Until the word is another, or somebody wakes it, or the time is over; it may also return for no reason. */
void hm_futex_wait(const uint32_t *word, uint32_t value, int64_t timeout_ns);
/* The same for any of several words. A kernel before 5.16 can't: then it returns after a millisecond at most. */
void hm_futex_wait_any(const struct hm_watch *watches, int count, int64_t timeout_ns);
/* Wake all who wait for it. */
void hm_futex_wake(const uint32_t *word);
/* Raise the word, and wake. */
void hm_futex_ring(uint32_t *word);

/* Whether this process has processors to spare: many of them, and no quota of their time. Reads files; ask once. */
bool hm_may_spin(void);
