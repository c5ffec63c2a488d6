/*
 * The driver in this process: what is global, and the guard every entry point starts with.
 *
 * One mutex covers all of the library's own data; entry points hold it from HM_ENTER to return, and
 * functions without HM_ENTER expect it held. Whoever waits lets go of it (hm_driver_wait). The lock
 * of the shared state comes after it.
 */
#pragma once

#include "sim_common.h"

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#include "sim_card.h"
#include "sim_state.h"

struct hm_context;

struct hm_driver {
    struct hm_state *state;
    bool initialized;
    bool forked; /* a child of an initialized process: nothing works any more */
    int device_count;
    uint32_t cards[HM_CARDS_MAX]; /* device ordinal -> card */
};

extern struct hm_driver hm_driver;

enum hm_need { HM_ANYTIME, HM_INITIALIZED, HM_CURRENT };

struct hm_call {
    CUresult result;
    struct hm_context *ctx; /* current context; NULL unless HM_CURRENT */
    const char *twin;       /* see hm_twin_begin */
};

/* First line of an entry point: a fault on order, then the lock, then what the call needs. */
#define HM_ENTER(need)                                                             \
    HM_CLEANUP(hm_call_leave) struct hm_call call = hm_call_enter(__func__, need); \
    if (call.result != CUDA_SUCCESS)                                               \
    return call.result

struct hm_call hm_call_enter(const char *name, enum hm_need need);
void hm_call_leave(struct hm_call *call);

/*
 * Generated entry points that forward to another version or to the plain form of a _ptsz twin put
 * their own name here first: the fault is looked up under it and, for a twin, stream 0 means the
 * calling thread's stream. The entry point forwarded to takes it away again.
 */
void hm_twin_begin(const char *name);
/* Whether this call came in through a _ptsz or _ptds twin. */
bool hm_call_per_thread(const struct hm_call *call);

/* Lets go of the lock until about `until_ns` of the clock. */
void hm_driver_wait(int64_t until_ns);
void hm_driver_unlock(void);
void hm_driver_lock(void);

/* Reads CUDA_VISIBLE_DEVICES as the driver does; fills hm_driver.cards. */
void hm_visible_read(void);

static inline bool
hm_device_valid(CUdevice device)
{
    return device >= 0 && device < hm_driver.device_count;
}
