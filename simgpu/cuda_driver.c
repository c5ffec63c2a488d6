#include "cuda_driver.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cuda_context.h"
#include "sim_clock.h"
#include "sim_fault.h"

struct hm_driver hm_driver;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread const char *twin;

void
hm_driver_lock(void)
{
    pthread_mutex_lock(&lock);
}

void
hm_driver_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

void
hm_driver_wait(int64_t until_ns)
{
    hm_driver_unlock();
    hm_clock_wait(until_ns);
    hm_driver_lock();
}

void
hm_twin_begin(const char *name)
{
    twin = name;
}

bool
hm_call_per_thread(const struct hm_call *call)
{
    const char *suffix = call->twin != NULL ? strrchr(call->twin, '_') : NULL;

    return suffix != NULL && (strcmp(suffix, "_ptsz") == 0 || strcmp(suffix, "_ptds") == 0);
}

static CUresult
check(enum hm_need need, struct hm_context **ctx)
{
    if (need == HM_ANYTIME)
        return CUDA_SUCCESS;
    if (!hm_driver.initialized || hm_driver.forked)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (need == HM_INITIALIZED)
        return CUDA_SUCCESS;
    *ctx = hm_context_current();
    if (*ctx == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    return (*ctx)->broken;
}

struct hm_call
hm_call_enter(const char *name, enum hm_need need)
{
    struct hm_call call = {.twin = twin};
    int code;

    twin = NULL;
    if (hm_fault_hit(call.twin != NULL ? call.twin : name, &code)) {
        hm_driver_lock();
        call.result = (CUresult)code;
        return call;
    }
    hm_driver_lock();
    call.result = check(need, &call.ctx);
    return call;
}

void
hm_call_leave(struct hm_call *call)
{
    (void)call;
    hm_driver_unlock();
}

/* The parent's threads may hold the lock: the child starts with a fresh one. */
static void
in_fork_child(void)
{
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;

    lock = fresh;
    hm_driver.forked = hm_driver.initialized;
    hm_state_fork_child();
    hm_process_forget();
}

/* At load, not at cuInit: a thread may fork while another one is in it. */
__attribute__((constructor)) static void
watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_fork_child);
}

static CUresult
initialize(void)
{
    if (hm_driver.forked)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (hm_driver.initialized)
        return CUDA_SUCCESS;
    hm_driver.state = hm_state();
    if (hm_driver.state == NULL)
        return CUDA_ERROR_SYSTEM_NOT_READY;
    hm_visible_read();
    if (hm_driver.device_count == 0)
        return CUDA_ERROR_NO_DEVICE;
    if (hm_process_join() < 0) {
        fprintf(stderr, "simgpu: more than %d processes\n", HM_SLOTS);
        return CUDA_ERROR_SYSTEM_NOT_READY;
    }
    hm_driver.initialized = true;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuInit(unsigned int flags)
{
    HM_ENTER(HM_ANYTIME);
    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    return initialize();
}

HM_EXPORT CUresult
cuDriverGetVersion(int *version)
{
    HM_ENTER(HM_ANYTIME);
    if (version == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *version = 13000;
    return CUDA_SUCCESS;
}
