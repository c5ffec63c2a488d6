/* ledger.c and region.c under ctypes: one process plays several, through the slots that it is told to use. */
#include "ledger.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct hm_tenant hm_tenant;
__thread int hm_depth __attribute__((tls_model("initial-exec")));

static struct hm_limits *limits; /* writable: the harness plays the supervisor, too */

/* Map the pages of a folder; 0 or -1. */
__attribute__((visibility("default"))) int
harness_open(const char *limits_path, const char *usage)
{
    char error[400] = "";
    int fd = open(limits_path, O_RDWR);

    limits = mmap(NULL, sizeof(*limits), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    strncpy(hm_tenant.limits_path, limits_path, sizeof(hm_tenant.limits_path) - 1);
    strncpy(hm_tenant.usage_path, usage, sizeof(hm_tenant.usage_path) - 1);
    return limits != MAP_FAILED && hm_region_map(&hm_tenant, error, sizeof(error)) ? 0 : -1;
}

static struct hm_use *
use_of(int slot)
{
    return &hm_tenant.usage->slot[slot].use[0];
}

/* Slots 0 to count - 1 are taken and empty, and the cap is cap_bytes. */
__attribute__((visibility("default"))) void
harness_reset(int count, uint64_t cap_bytes)
{
    limits->device[0].memory_bytes = cap_bytes;
    for (int i = 0; i < HM_SLOTS; i++) {
        memset(use_of(i), 0, sizeof(struct hm_use));
        hm_tenant.usage->slot[i].taken = i < count;
    }
    hm_tenant.usage->high_slot = (uint32_t)count;
}

__attribute__((visibility("default"))) bool
harness_take(int slot, uint32_t units)
{
    return hm_ledger_take(use_of(slot), units);
}

__attribute__((visibility("default"))) bool
harness_grow(int slot, uint32_t units, uint64_t margin_bytes)
{
    return hm_ledger_grow(0, use_of(slot), units, margin_bytes);
}

__attribute__((visibility("default"))) void
harness_force(int slot, uint32_t units)
{
    hm_ledger_force(use_of(slot), units);
}

__attribute__((visibility("default"))) void
harness_give(int slot, uint32_t units)
{
    hm_ledger_give(use_of(slot), units);
}

__attribute__((visibility("default"))) bool
harness_overhead(int slot, int64_t bytes)
{
    return hm_ledger_overhead(0, use_of(slot), bytes, false);
}

__attribute__((visibility("default"))) void
harness_share(int slot, uint64_t exported, uint64_t imported)
{
    use_of(slot)->exported_bytes = exported;
    use_of(slot)->imported_bytes = imported;
}

__attribute__((visibility("default"))) void
harness_die(int slot)
{
    memset(use_of(slot), 0, sizeof(struct hm_use));
    hm_tenant.usage->slot[slot].taken = 0;
}

__attribute__((visibility("default"))) uint64_t
harness_grant(int slot)
{
    return use_of(slot)->grant;
}

__attribute__((visibility("default"))) uint64_t
harness_charged(void)
{
    return hm_ledger_charged(0);
}

__attribute__((visibility("default"))) uint64_t
harness_room(void)
{
    return hm_ledger_room(0);
}
