/* Which stream-ordered pools this process has, and what the driver says of each. */
#include "pool_table.h"

#include <pthread.h>
#include <string.h>

#define POOLS 256 /* of one process; what lies in further ones counts as overhead, from NVML */
#define SURELY 4  /* times what is asked has to lie unused before we count on it */

static struct hm_pool pools[POOLS];
static int pool_high; /* no entry at or above was ever used; raised under the mutex */
static struct hm_pool *current[HM_DEVICES]; /* the device's current pool; NULL: ask the driver */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void
hm_pool_lock(void)
{
    pthread_mutex_lock(&mutex);
}

void
hm_pool_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

struct hm_pool *
hm_pool_next(const struct hm_pool *pool)
{
    int next = pool != NULL ? (int)(pool - pools) + 1 : 0;

    return next < __atomic_load_n(&pool_high, __ATOMIC_ACQUIRE) ? &pools[next] : NULL;
}

bool
hm_pool_ask(CUmemoryPool handle, CUmemPool_attribute which, cuuint64_t *value)
{
    return REAL(cuMemPoolGetAttribute(handle, which, value)) == CUDA_SUCCESS;
}

uint64_t
hm_pool_attribute(CUmemoryPool handle, CUmemPool_attribute which)
{
    cuuint64_t value = 0;

    hm_pool_ask(handle, which, &value);
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
hm_pool_known(CUmemoryPool handle)
{
    return hm_active() ? find(handle) : NULL;
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
                             __ATOMIC_RELEASE); /* pairs with find and hm_pool_next */
    }
    pthread_mutex_unlock(&mutex);
    return pool;
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

void
hm_pool_forget_all(void)
{
    pthread_mutex_init(&mutex, NULL);
    for (int i = 0; i < pool_high; i++)
        pools[i] = (struct hm_pool){.handle = NULL};
    hm_pool_forget_current();
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

/* The current pool may be another now: ask the driver again at the next allocation. */
void
hm_pool_forget_current(void)
{
    for (int i = 0; i < HM_DEVICES; i++)
        __atomic_store_n(&current[i], NULL, __ATOMIC_RELEASE);
}

/* The pool surely has so much unused: several times as much, in whatever pieces, that no synchronization gives back. */
static bool
has_unused(const struct hm_pool *pool, uint64_t bytes)
{
    uint64_t used = hm_pool_attribute(pool->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
    uint64_t reserved = hm_pool_attribute(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
    uint64_t kept = hm_pool_attribute(pool->handle, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);

    kept = kept < reserved ? kept : reserved;
    return kept > used && (kept - used) / SURELY >= bytes;
}

/* Who relies and who trims: each side says what it does, then looks. */
bool
hm_pool_rely_begin(struct hm_pool *pool, uint64_t bytes)
{
    bool relies;

    __atomic_fetch_add(&pool->relying, 1, __ATOMIC_SEQ_CST); /* pairs with hm_pool_trim_unused */
    relies = !__atomic_load_n(&pool->trimmed, __ATOMIC_SEQ_CST) && has_unused(pool, bytes);
    if (!relies)
        hm_pool_rely_end(pool);
    return relies;
}

void
hm_pool_rely_end(struct hm_pool *pool)
{
    __atomic_fetch_sub(&pool->relying, 1, __ATOMIC_RELEASE); /* pairs with hm_pool_trim_unused */
}

void
hm_pool_trim_unused(struct hm_pool *pool)
{
    __atomic_store_n(&pool->trimmed, true, __ATOMIC_SEQ_CST); /* pairs with hm_pool_rely_begin */
    if (__atomic_load_n(&pool->relying, __ATOMIC_SEQ_CST) == 0)
        REAL(cuMemPoolTrimTo(pool->handle, 0));
    __atomic_store_n(&pool->trimmed, false, __ATOMIC_RELEASE);
}
