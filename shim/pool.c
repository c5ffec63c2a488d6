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
 * CUDA promises to give back in stream, event and context synchronizations only. Should another call do it (a copy, a
 * free), what falls is noted and ripens when one of those returns, or a trim, not by the other call itself: too late if
 * none comes, too early if it is still giving back then.
 */
#include "pool.h"

#include "ledger.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#define POOLS 256 /* of one process; what lies in further ones counts as overhead, from NVML */
#define GROWTH_BYTES 33554432 /* a pool grows by whole multiples of this (H100, driver 580) */
#define SURELY 4              /* times what is asked has to lie unused before we count on it */

/*
 * A synchronization can wait for hours before it gives anything back, and what has fallen is not its doing then. To free
 * 64 MiB takes 0.1 ms (H100, driver 580): after so long giving back is over, whoever still waits.
 */
#define GIVING_BACK_MS 50

/* What has fallen is noted at a change of phase, and again at intervals of GIVING_BACK_MS. */
enum mark { PHASE, TIME, MARKS };

struct hm_pool {
    CUmemoryPool handle;     /* NULL: destroyed; if nothing is charged either, the entry is free */
    struct hm_charge charge; /* under the mutex, like peak and noted; at least seen_bytes */
    uint64_t seen_bytes;     /* its figure at the last look; written under the mutex, atomic */
    uint64_t peak_bytes;     /* the most it held since nothing was charged beyond seen_bytes */
    uint64_t noted_bytes[MARKS]; /* what was charged beyond when it was last noted */
    uint32_t relying; /* allocations under way that count on what the pool has unused; atomic */
    bool trimmed;     /* about to lose what it has unused; atomic */
};

static struct hm_pool pools[POOLS];
static int pool_high; /* no entry at or above was ever used; raised under the mutex */
static struct hm_pool *current[HM_DEVICES]; /* the device's current pool; NULL: ask the driver */
static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* over pools and their charges, never over an allocation */

/* Calls under way that may give back: by the phase they began in; those that began when there was no pool; our trims. */
enum { EARLY = 2, TRIMS, CALLS };

static uint32_t under_way[CALLS]; /* atomic; all but EARLY are written under the mutex */
static uint64_t notes[MARKS]; /* how often; the lowest bit of PHASE is the phase; under the mutex */
static uint64_t noted_ms;     /* when, for TIME; under the mutex */

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

/* Beside an allocation, which the driver refuses where asking would do harm; else between two exchanges. */
static bool
look(CUmemoryPool handle, CUmemPool_attribute which, cuuint64_t *value)
{
    return REAL(cuMemPoolGetAttribute(handle, which, value)) == CUDA_SUCCESS;
}

static uint64_t
attribute(CUmemoryPool handle, CUmemPool_attribute which)
{
    cuuint64_t value = 0;

    look(handle, which, &value);
    return value;
}

static struct hm_pool *
find(CUmemoryPool handle)
{
    int high = __atomic_load_n(&pool_high, __ATOMIC_ACQUIRE);

    for (int i = 0; handle != NULL && i < high; i++)
        if (__atomic_load_n(&pools[i].handle, __ATOMIC_ACQUIRE) == handle)
            return &pools[i];
    return NULL;
}

struct hm_pool *
hm_pool_add(CUmemoryPool handle, int device)
{
    struct hm_pool *pool;

    pthread_mutex_lock(&mutex);
    pool = find(handle);
    for (int i = 0; pool == NULL && i < POOLS; i++) {
        if (pools[i].handle != NULL || pools[i].charge.bytes != 0)
            continue;
        pool = &pools[i];
        pool->charge = (struct hm_charge){.device = device, .kind = HM_POOL};
        memset(pool->noted_bytes, 0, sizeof(pool->noted_bytes));
        pool->peak_bytes = 0;
        __atomic_store_n(&pool->seen_bytes, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&pool->handle, handle, __ATOMIC_RELEASE);
        if (i >= pool_high)
            __atomic_store_n(&pool_high, i + 1,
                             __ATOMIC_RELEASE); /* pairs with the acquire in find */
    }
    pthread_mutex_unlock(&mutex);
    return pool;
}

static uint64_t
least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What is charged of a pool beyond what it says it holds. The mutex is held. */
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

/* Charge what the pool grew by; a reservation becomes part of that. False: it can't be asked. The mutex is held. */
static bool
read_pool(struct hm_pool *pool, struct hm_charge *reservation)
{
    cuuint64_t reserved = 0;
    uint64_t bytes;

    if (pool->handle != NULL &&
        !look(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved))
        return false; /* what was charged stays */
    bytes = due(pool, reserved);
    if (reserved > pool->peak_bytes)
        pool->peak_bytes = reserved;
    __atomic_store_n(&pool->seen_bytes, reserved, __ATOMIC_RELAXED);
    if (reservation != NULL)
        hm_quota_join(&pool->charge, reservation);
    charge(pool, bytes);
    for (int mark = 0; mark < MARKS; mark++)
        pool->noted_bytes[mark] = least(pool->noted_bytes[mark], fallen(pool));
    return true;
}

/* What was noted last time is free by now; note what has fallen since. The mutex is held. */
static void
note(enum mark mark)
{
    notes[mark]++;
    for (int i = 0; i < pool_high; i++) {
        uint64_t bytes;

        read_pool(&pools[i], NULL);
        bytes = pools[i].noted_bytes[mark];
        charge(&pools[i], pools[i].charge.bytes - bytes);
        for (int other = 0; other < MARKS; other++) /* what fell first is free first */
            pools[i].noted_bytes[other] -= least(pools[i].noted_bytes[other], bytes);
        pools[i].noted_bytes[mark] = fallen(&pools[i]);
    }
}

static bool
any_fallen(int device)
{
    for (int i = 0; i < pool_high; i++)
        if ((device < 0 || pools[i].charge.device == device) && fallen(&pools[i]) > 0)
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

/* Every call that was under way at the last change of phase has returned. The mutex is held. */
static bool
may_change(void)
{
    /* pairs with hm_pool_sync_begin */
    return under_way[~notes[PHASE] & 1] + __atomic_load_n(&under_way[EARLY], __ATOMIC_ACQUIRE) == 0;
}

/* Give back what has fallen long enough ago. The mutex is held. */
static void
ripen(void)
{
    for (int i = 0; i < 2 && any_fallen(-1) && may_change(); i++)
        note(PHASE);
    if (any_fallen(-1) && now_ms() - noted_ms >= GIVING_BACK_MS) {
        note(TIME);
        noted_ms = now_ms();
    }
}

/* The device on which a stream allocates, as the tenant's index. */
static int
stream_device(CUstream stream)
{
    CUdevice device;

    if (HM_LIKELY(hm_device_only() >= 0))
        return hm_device_only();
    if ((uintptr_t)stream <= (uintptr_t)CU_STREAM_PER_THREAD || !HM_HAS(cuStreamGetDevice) ||
        REAL(cuStreamGetDevice(stream, &device)) != CUDA_SUCCESS)
        return hm_device_current();
    return hm_device_index(device);
}

struct hm_pool *
hm_pool_current(CUstream stream)
{
    int device = hm_active() ? stream_device(stream) : -1;
    struct hm_pool *pool = device >= 0 ? __atomic_load_n(&current[device], __ATOMIC_ACQUIRE) : NULL;
    CUmemoryPool handle;

    if (HM_LIKELY(pool != NULL) || device < 0 ||
        REAL(cuDeviceGetMemPool(&handle, hm_device_handle(device))) != CUDA_SUCCESS)
        return pool;
    pool = find(handle);
    if (pool == NULL)
        pool = hm_pool_add(handle, device);
    __atomic_store_n(&current[device], pool, __ATOMIC_RELEASE);
    return pool;
}

static uint64_t
growth(uint64_t bytes, uint64_t step)
{
    return bytes > UINT64_MAX - step ? bytes : (bytes + step - 1) / step * step;
}

/* The pool surely has so much unused: several times as much, in whatever pieces, that no synchronization gives back. */
static bool
has_unused(const struct hm_pool *pool, uint64_t bytes)
{
    uint64_t used = attribute(pool->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
    uint64_t reserved = attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
    uint64_t kept = attribute(pool->handle, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);

    kept = kept < reserved ? kept : reserved;
    return kept > used && (kept - used) / SURELY >= bytes;
}

/* Count on what the pool has unused, and keep us from trimming it meanwhile. Each side says what it does, then looks. */
static bool
rely(struct hm_pool_call *call, struct hm_pool *pool)
{
    __atomic_fetch_add(&pool->relying, 1, __ATOMIC_SEQ_CST); /* pairs with trim_pool */
    call->relies =
        !__atomic_load_n(&pool->trimmed, __ATOMIC_SEQ_CST) && has_unused(pool, call->bytes);
    if (!call->relies)
        __atomic_fetch_sub(&pool->relying, 1, __ATOMIC_RELEASE);
    return call->relies;
}

static void
trim_pool(struct hm_pool *pool)
{
    __atomic_store_n(&pool->trimmed, true, __ATOMIC_SEQ_CST); /* pairs with rely */
    if (__atomic_load_n(&pool->relying, __ATOMIC_SEQ_CST) == 0)
        REAL(cuMemPoolTrimTo(pool->handle, 0));
    __atomic_store_n(&pool->trimmed, false, __ATOMIC_RELEASE);
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

/* See a figure that has fallen before the pool grows again, or the two would look like nothing. */
static void
note_fall(struct hm_pool *pool)
{
    if (attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >=
        __atomic_load_n(&pool->seen_bytes, __ATOMIC_RELAXED))
        return;
    pthread_mutex_lock(&mutex);
    read_pool(pool, NULL);
    pthread_mutex_unlock(&mutex);
}

/* False: out of memory. Where a whole step does not fit any more, the pool can still serve from what it has. */
bool
hm_pool_begin(struct hm_pool_call *call, struct hm_pool *pool, uint64_t bytes)
{
    int device = pool != NULL ? pool->charge.device : -1;

    *call = (struct hm_pool_call){.pool = pool, .charge = {.device = -1}, .bytes = bytes};
    if (device >= 0 && HM_UNLIKELY(may_fall()))
        note_fall(pool);
    if (device < 0 ||
        HM_LIKELY(hm_quota_try(&call->charge, HM_KINDS, device, growth(bytes, GROWTH_BYTES))) ||
        rely(call, pool))
        return true;
    return hm_quota_reserve(&call->charge, HM_KINDS, device, growth(bytes, GROWTH_BYTES));
}

/* If the pool grew, the reservation becomes part of its charge, and that what it holds now. True: within the cap. */
static bool
settle(struct hm_pool_call *call)
{
    struct hm_pool *pool = call->pool;
    int device = pool->charge.device;
    uint64_t expected;
    bool grew;

    if (HM_LIKELY(attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) <=
                  __atomic_load_n(&pool->seen_bytes, __ATOMIC_RELAXED))) {
        hm_quota_release(&call->charge);
        return true;
    }
    pthread_mutex_lock(&mutex);
    expected = pool->charge.bytes + call->charge.bytes;
    read_pool(pool, &call->charge);
    grew = pool->charge.bytes > expected;
    pthread_mutex_unlock(&mutex);
    hm_quota_release(&call->charge); /* what has not become part of the pool's */
    return !grew || hm_ledger_charged(device) + HM_RESERVE_BYTES <= hm_cap_bytes(device);
}

/* The pool grew by more than there was room for: undo. per_thread: the stream argument has that meaning. */
static CUresult
undo(const struct hm_pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread)
{
    if (per_thread)
        REAL(cuMemFreeAsync_ptsz(*dptr, stream));
    else
        REAL(cuMemFreeAsync(*dptr, stream));
    *dptr = 0;
    hm_pool_trim(call->pool->charge.device);
    hm_quota_refused(call->pool->charge.device, call->bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult
hm_pool_end(struct hm_pool_call *call, CUdeviceptr *dptr, CUstream stream, bool per_thread,
            CUresult result)
{
    bool fits;

    if (call->pool == NULL)
        return result;
    fits = settle(call);
    if (call->relies)
        __atomic_fetch_sub(&call->pool->relying, 1, __ATOMIC_RELEASE); /* pairs with trim_pool */
    return fits || result != CUDA_SUCCESS ? result : undo(call, dptr, stream, per_thread);
}

struct hm_pool *
hm_pool_known(CUmemoryPool handle)
{
    return hm_active() ? find(handle) : NULL;
}

int
hm_pool_forget(struct hm_pool *pool)
{
    int device;

    pthread_mutex_lock(&mutex);
    device = pool->charge.device;
    for (int i = 0; i < HM_DEVICES; i++)
        if (__atomic_load_n(&current[i], __ATOMIC_RELAXED) == pool)
            __atomic_store_n(&current[i], NULL, __ATOMIC_RELEASE);
    __atomic_store_n(&pool->handle, NULL, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mutex);
    return device;
}

/* The current pool may be another now: ask the driver again at the next allocation. */
void
hm_pool_forget_current(void)
{
    for (int i = 0; i < HM_DEVICES; i++)
        __atomic_store_n(&current[i], NULL, __ATOMIC_RELEASE);
}

int
hm_pool_sync_begin(void)
{
    int call;

    if (!hm_active())
        return -1;
    if (__atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) == 0) {
        __atomic_fetch_add(&under_way[EARLY], 1, __ATOMIC_ACQ_REL); /* pairs with may_change */
        return EARLY;
    }
    pthread_mutex_lock(&mutex);
    call = notes[PHASE] & 1;
    __atomic_fetch_add(&under_way[call], 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&mutex);
    return call;
}

enum visit { LOOK, RIPEN, TRIM };

/* False: a pool of the device holds less than is charged for it. The mutex is held. */
static bool
visit_pools(int device, enum visit visit)
{
    bool exact = true;

    if (visit == TRIM)
        __atomic_fetch_add(&under_way[TRIMS], 1, __ATOMIC_RELAXED);
    for (int i = 0; i < pool_high; i++) {
        if (device >= 0 && pools[i].charge.device != device)
            continue;
        if (visit == TRIM && pools[i].handle != NULL)
            trim_pool(&pools[i]);
        exact &= read_pool(&pools[i], NULL);
    }
    if (visit == TRIM)
        __atomic_fetch_sub(&under_way[TRIMS], 1, __ATOMIC_RELAXED);
    if (visit != LOOK)
        ripen();
    return exact && !any_fallen(device);
}

static CUstreamCaptureMode
lock(void)
{
    CUstreamCaptureMode mode = exchange(CU_STREAM_CAPTURE_MODE_RELAXED);

    pthread_mutex_lock(&mutex);
    return mode;
}

static void
unlock(CUstreamCaptureMode mode)
{
    pthread_mutex_unlock(&mutex);
    exchange(mode);
}

void
hm_pool_sync_end(int call)
{
    CUstreamCaptureMode mode;

    if (call < 0)
        return;
    if (__atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) == 0) {
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

    if (__atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) == 0)
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
    uint64_t before[MARKS];
    CUstreamCaptureMode mode;
    bool over;

    if (__atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) == 0)
        return;
    mode = lock();
    memcpy(before, notes, sizeof(before));
    visit_pools(device, TRIM);
    for (;;) {
        over = !any_fallen(device) || notes[PHASE] - before[PHASE] >= 2 ||
               notes[TIME] - before[TIME] >= 2;
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
    pthread_mutex_init(&mutex, NULL);
    for (int i = 0; i < pool_high; i++)
        pools[i] = (struct hm_pool){.handle = NULL};
    memset(under_way, 0, sizeof(under_way));
    hm_pool_forget_current();
}
