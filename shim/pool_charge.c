/*
 * Stream-ordered memory. What a pool holds reserved is what it takes of the card; the driver tells it in 35 ns, so it
 * is read after each allocation, and charged. Freeing changes nothing by itself: the driver gives memory back at
 * synchronizations and when a pool is trimmed. Its figure falls before the memory is free, on account of any thread.
 *
 * So what has fallen stays charged, on top of what the pool grows by again, until every call that was under way when
 * this was first seen has returned. As in RCU there are two phases: a call counts in the one it began in, and the phase
 * changes when none of the other is left. One change notes what has fallen, the next gives it back; both follow at once
 * where no other call is under way.
 *
 * CUDA promises to give back in stream, event and context synchronizations only, and of 20 calls no other did (H100,
 * driver 580: bench/results/giveback-h100.json). Should one do it all the same, what falls is noted and ripens when one
 * of those returns, or a trim: too late if none comes, too early if it is still giving back then.
 */
#include "pool_table.h"

#include <string.h>
#include <time.h>

/*
 * A synchronization can wait for hours before it gives anything back, and what has fallen is not its doing then. To free
 * 64 MiB takes 0.1 ms (H100, driver 580): after so long giving back is over, whoever still waits. It is the interval of
 * HM_POOL_TIME.
 */
#define GIVING_BACK_MS 50

/* Calls under way that may give back: by the phase they began in; those that began when there was no pool; our trims. */
enum { EARLY = 2, TRIMS, CALLS };

static uint32_t under_way[CALLS];     /* atomic; all but EARLY are written under the lock */
static uint64_t notes[HM_POOL_MARKS]; /* how often; the lowest bit of PHASE's is the phase */
static uint64_t noted_ms;             /* when, for TIME; both are under the lock */

/*
 * To ask a pool anything, or to trim it, invalidates every capture of the process in the global mode and this thread's
 * own in the thread-local one (driver 580), unless the thread says that it knows what it does.
 */
static CUstreamCaptureMode
exchange(CUstreamCaptureMode mode)
{
    REAL(cuThreadExchangeStreamCaptureMode(&mode));
    return mode;
}

/* The lock for who asks the driver meanwhile. Returns the thread's capture mode, for unlock. */
static CUstreamCaptureMode
lock(void)
{
    CUstreamCaptureMode mode = exchange(CU_STREAM_CAPTURE_MODE_RELAXED);

    hm_pool_lock();
    return mode;
}

static void
unlock(CUstreamCaptureMode mode)
{
    hm_pool_unlock();
    exchange(mode);
}

static uint64_t
least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What is charged of a pool beyond what it says it holds. The lock is held. */
static uint64_t
fallen(const struct hm_pool *pool)
{
    return pool->charge.bytes > pool->seen_bytes ? pool->charge.bytes - pool->seen_bytes : 0;
}

static void
charge(struct hm_pool *pool, uint64_t bytes)
{
    hm_quota_adjust(&pool->charge, bytes);
    if (fallen(pool) == 0)
        pool->peak_bytes = pool->seen_bytes;
}

/*
 * What is to be charged for a pool that holds reserved bytes now: what it grew by comes on top, since what has fallen may
 * not be free yet. Not without end: one call gives back no more than the pool ever held.
 */
static uint64_t
due(const struct hm_pool *pool, uint64_t reserved)
{
    uint64_t bytes = pool->charge.bytes, most = reserved + pool->peak_bytes;

    if (reserved <= pool->seen_bytes || bytes >= most)
        return bytes;
    return least(bytes + reserved - pool->seen_bytes, most);
}

static bool
look(struct hm_pool *pool, struct hm_charge *reservation)
{
    cuuint64_t reserved = 0;
    uint64_t bytes;

    if (pool->handle != NULL &&
        !hm_pool_ask(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved))
        return false; /* what was charged stays */
    bytes = due(pool, reserved);
    if (reserved > pool->peak_bytes)
        pool->peak_bytes = reserved;
    __atomic_store_n(&pool->seen_bytes, reserved, __ATOMIC_RELAXED);
    if (reservation != NULL)
        hm_quota_join(&pool->charge, reservation);
    charge(pool, bytes);
    for (int mark = 0; mark < HM_POOL_MARKS; mark++)
        pool->noted_bytes[mark] = least(pool->noted_bytes[mark], fallen(pool));
    return true;
}

/* Charge what the pool grew by; a reservation becomes part of that. False: it can't be asked. The lock is held. */
static bool
read_pool(struct hm_pool *pool, struct hm_charge *reservation)
{
    bool known;

    __atomic_fetch_add(&pool->looks, 1, __ATOMIC_ACQ_REL); /* both pair with hm_pool_is_as_seen */
    known = look(pool, reservation);
    __atomic_fetch_add(&pool->looks, 1, __ATOMIC_RELEASE);
    return known;
}

bool
hm_pool_is_as_seen(const struct hm_pool *pool)
{
    uint32_t looks = __atomic_load_n(&pool->looks, __ATOMIC_ACQUIRE);
    bool grown = hm_pool_attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >
                 __atomic_load_n(&pool->seen_bytes, __ATOMIC_ACQUIRE);

    return !grown && looks % 2 == 0 && __atomic_load_n(&pool->looks, __ATOMIC_RELAXED) == looks;
}

/* What was noted last time is free by now; note what has fallen since. The lock is held. */
static void
note(enum hm_pool_mark mark)
{
    notes[mark]++;
    for (struct hm_pool *pool = hm_pool_next(NULL); pool != NULL; pool = hm_pool_next(pool)) {
        uint64_t bytes;

        read_pool(pool, NULL);
        bytes = pool->noted_bytes[mark];
        charge(pool, pool->charge.bytes - bytes);
        for (int other = 0; other < HM_POOL_MARKS; other++) /* what fell first is free first */
            pool->noted_bytes[other] -= least(pool->noted_bytes[other], bytes);
        pool->noted_bytes[mark] = fallen(pool);
    }
}

static bool
any_fallen(int device)
{
    for (struct hm_pool *pool = hm_pool_next(NULL); pool != NULL; pool = hm_pool_next(pool))
        if ((device < 0 || pool->charge.device == device) && fallen(pool) > 0)
            return true;
    return false;
}

static uint64_t
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Every call that was under way at the last change of phase has returned. The lock is held. */
static bool
may_change(void)
{
    uint32_t early = __atomic_load_n(&under_way[EARLY], __ATOMIC_ACQUIRE); /* pairs with sync_end */

    return under_way[~notes[HM_POOL_PHASE] & 1] + early == 0;
}

/* Give back what has fallen long enough ago. The lock is held. */
static void
ripen(void)
{
    for (int i = 0; i < 2 && any_fallen(-1) && may_change(); i++)
        note(HM_POOL_PHASE);
    if (any_fallen(-1) && now_ms() - noted_ms >= GIVING_BACK_MS) {
        note(HM_POOL_TIME);
        noted_ms = now_ms();
    }
}

/* Another thread may be giving back. A hint: one that begins just now is seen at the next allocation. */
static bool
may_fall(void)
{
    uint32_t calls = 0;

    for (int i = 0; i < CALLS; i++)
        calls |= __atomic_load_n(&under_way[i], __ATOMIC_RELAXED);
    return calls != 0;
}

/* A fall and a growth that are seen at once would look like nothing. */
void
hm_pool_see_fall(struct hm_pool *pool)
{
    if (HM_LIKELY(!may_fall()) ||
        hm_pool_attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >=
            __atomic_load_n(&pool->seen_bytes, __ATOMIC_RELAXED))
        return;
    hm_pool_lock();
    read_pool(pool, NULL);
    hm_pool_unlock();
}

bool
hm_pool_see_growth(struct hm_pool *pool, struct hm_charge *reservation)
{
    uint64_t expected;
    bool reserved;

    hm_pool_lock();
    expected = pool->charge.bytes + reservation->bytes;
    read_pool(pool, reservation);
    reserved = pool->charge.bytes <= expected;
    hm_pool_unlock();
    return reserved;
}

int
hm_pool_sync_begin(void)
{
    int call;

    if (!hm_active())
        return -1;
    if (!hm_pool_any()) {
        __atomic_fetch_add(&under_way[EARLY], 1, __ATOMIC_ACQ_REL); /* pairs with may_change */
        return EARLY;
    }
    hm_pool_lock();
    call = notes[HM_POOL_PHASE] & 1;
    __atomic_fetch_add(&under_way[call], 1, __ATOMIC_RELAXED);
    hm_pool_unlock();
    return call;
}

enum visit { LOOK, RIPEN, TRIM };

/* False: a pool of the device holds less than is charged for it. The lock is held. */
static bool
visit_pools(int device, enum visit visit)
{
    bool exact = true;

    if (visit == TRIM)
        __atomic_fetch_add(&under_way[TRIMS], 1, __ATOMIC_RELAXED);
    for (struct hm_pool *pool = hm_pool_next(NULL); pool != NULL; pool = hm_pool_next(pool)) {
        if (device >= 0 && pool->charge.device != device)
            continue;
        if (visit == TRIM && pool->handle != NULL)
            hm_pool_trim_unused(pool);
        exact &= read_pool(pool, NULL);
    }
    if (visit == TRIM)
        __atomic_fetch_sub(&under_way[TRIMS], 1, __ATOMIC_RELAXED);
    if (visit != LOOK)
        ripen();
    return exact && !any_fallen(device);
}

void
hm_pool_sync_end(int call)
{
    CUstreamCaptureMode mode;

    if (call < 0)
        return;
    if (!hm_pool_any()) {
        __atomic_fetch_sub(&under_way[call], 1, __ATOMIC_RELEASE); /* pairs with may_change */
        return;
    }
    mode = lock();
    __atomic_fetch_sub(&under_way[call], 1, __ATOMIC_RELEASE);
    visit_pools(-1, RIPEN);
    unlock(mode);
}

bool
hm_pool_refresh(int device)
{
    CUstreamCaptureMode mode;
    bool exact;

    if (!hm_pool_any())
        return true;
    mode = lock();
    exact = visit_pools(device, LOOK);
    unlock(mode);
    return exact;
}

/* Wait until what had fallen before, too, is given back. It is once it was noted twice. */
void
hm_pool_trim(int device)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};
    uint64_t before[HM_POOL_MARKS];
    CUstreamCaptureMode mode;
    bool over;

    if (!hm_pool_any())
        return;
    mode = lock();
    memcpy(before, notes, sizeof(before));
    visit_pools(device, TRIM);
    for (;;) {
        over = !any_fallen(device) || notes[HM_POOL_PHASE] - before[HM_POOL_PHASE] >= 2 ||
               notes[HM_POOL_TIME] - before[HM_POOL_TIME] >= 2;
        unlock(mode);
        if (over)
            return;
        nanosleep(&millisecond, NULL);
        mode = lock();
        visit_pools(device, RIPEN);
    }
}

void
hm_pool_after_fork_child(void)
{
    hm_pool_forget_all();
    memset(under_way, 0, sizeof(under_way));
}
