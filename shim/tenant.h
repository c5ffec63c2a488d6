/*
 * The tenant this process belongs to: where its pages are, its slot, its devices.
 *
 * Found once, on first use: (1) /run/hamirt/ro/limits, (2) HAMIRT_TENANT_DIR, (3) HAMi's variables, (4) none.
 */
#pragma once
#include "hooks.h"
#include "region.h"

#define HM_MIB 1048576

enum hm_tenant_state {
    HM_INERT,  /* no tenant: every call goes straight through */
    HM_ACTIVE, /* limits are enforced */
    HM_BROKEN, /* a tenant whose pages can't be used, and on_error is deny: cuInit is refused */
};

struct hm_tenant {
    const struct hm_limits *limits;
    struct hm_usage *usage;
    char limits_path[256];
    char usage_path[256];
};

extern struct hm_tenant hm_tenant;

/* Find the tenant and map its pages. The first call does the work; one log line says why on HM_BROKEN. */
enum hm_tenant_state hm_tenant_state(void);

/* True when hooks have work to do on this call: a tenant is active and the thread is not inside the driver. */
static inline bool
hm_active(void)
{
    extern uint8_t hm_tenant_known; /* 1 + enum hm_tenant_state, 0: not looked for yet */
    uint8_t known;

    if (hm_depth > 0)
        return false;
    known = __atomic_load_n(&hm_tenant_known, __ATOMIC_ACQUIRE);
    if (HM_UNLIKELY(known == 0))
        known = 1 + hm_tenant_state();
    return known == 1 + HM_ACTIVE;
}

/* config.c: HAMi's variables. Fill the limits page image; false: none is set. On a bad value *error names it. */
bool hm_config_standalone(struct hm_limits *limits, char *error, size_t error_size);
/* config.c: the folder of a standalone tenant's pages, made and checked. False: *error says why. */
bool hm_config_folder(char *path, size_t path_size, char *error, size_t error_size);

/* region.c: map and check the pages. False: *error is a sentence. */
bool hm_region_map(struct hm_tenant *tenant, char *error, size_t error_size);

/* Slots at or above this were never taken. The page is not trusted with more than it has. */
static inline uint32_t
hm_slots(void)
{
    uint32_t high = __atomic_load_n(&hm_tenant.usage->high_slot, __ATOMIC_ACQUIRE);

    return high < HM_SLOTS ? high : HM_SLOTS;
}

/* region.c: this process's slot, claimed on first use, again after fork. NULL: the page has no free slot. */
struct hm_slot *hm_slot(void);

/* region.c: the ledger's lock, between threads and processes. Never held across a driver call. False, and not held: its
   owner was stopped while he had it; after two seconds we go on without what the lock was for. */
bool hm_ledger_lock(void);
void hm_ledger_unlock(void);

/* region.c: whether the process of a slot lives. */
bool hm_region_slot_lives(int slot);

/* region.c: clear the slots of the dead. */
void hm_region_bury(void);

/* region.c: for pthread_atfork. */
void hm_region_before_fork(void);
void hm_region_after_fork_parent(void);
void hm_region_after_fork_child(void);

/*
 * device.c: indices into the limits page. hm_device_init is called after cuInit; -1 means not a device of the tenant.
 */
void hm_device_init(void);
int hm_device_index(CUdevice device);
int hm_device_current(void); /* of the calling thread's current context */
int hm_device_by_uuid(const char *uuid);
int hm_device_only(void);  /* the index of the driver's only device, -1 if there are several */
int hm_device_count(void); /* devices of the driver */
CUdevice
hm_device_handle(int index); /* the driver's device for an index, -1 if it does not show it */

/* visible.c: what CUDA_VISIBLE_DEVICES has to be for the driver to show just the tenant's devices. */
void hm_visible_enter(void); /* before the real cuInit */
void hm_visible_leave(void); /* after it: the program's own value again */
