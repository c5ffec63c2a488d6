#include "cuda_vmm.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "cuda_memory.h"
#include "cuda_space.h"

struct reservation {
    uint64_t address;
    uint64_t bytes;
    struct reservation *next;
};

static struct reservation *reservations;

static struct reservation **
find_reservation(uint64_t address, uint64_t bytes)
{
    struct reservation **link = &reservations;

    while (*link != NULL &&
           (address < (*link)->address || address + bytes > (*link)->address + (*link)->bytes))
        link = &(*link)->next;
    return link;
}

HM_EXPORT CUresult
cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                    unsigned long long flags)
{
    HM_ENTER(HM_INITIALIZED);
    struct reservation *reservation;

    if (address == NULL || flags != 0 || bytes == 0 || bytes % HM_BLOCK_BYTES != 0 ||
        (alignment & (alignment - 1)) != 0 || bytes > UINT64_MAX / 4)
        return CUDA_ERROR_INVALID_VALUE;
    reservation = hm_allocate(sizeof(*reservation));
    reservation->bytes = bytes;
    reservation->address = hm_space_take(hint, bytes, false);
    if (reservation->address == 0) {
        free(reservation);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    reservation->next = reservations;
    reservations = reservation;
    *address = reservation->address;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemAddressFree(CUdeviceptr address, size_t bytes)
{
    HM_ENTER(HM_INITIALIZED);
    struct reservation **link = find_reservation(address, bytes);
    struct reservation *reservation = *link;

    if (reservation == NULL || reservation->address != address || reservation->bytes != bytes)
        return CUDA_ERROR_INVALID_VALUE;
    *link = reservation->next;
    hm_space_give(address, bytes);
    free(reservation);
    return CUDA_SUCCESS;
}

/* Whether any mapping lies in that part of a reservation. */
static bool
occupied(uint64_t address, uint64_t bytes)
{
    for (uint64_t at = address; at < address + bytes; at += HM_BLOCK_BYTES) {
        if (hm_range_at(at) != NULL)
            return true;
    }
    return false;
}

/* Backs the addresses; without `physical` they are only reserved again. */
static bool
back(uint64_t address, uint64_t bytes, const struct hm_physical *physical)
{
    bool shared = physical != NULL && physical->fd >= 0;
    int flags = MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);

    return mmap((void *)address, bytes, PROT_NONE, flags, shared ? physical->fd : -1, 0) !=
           MAP_FAILED;
}

HM_EXPORT CUresult
cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
         unsigned long long flags)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_physical *physical = hm_physical_find(handle);
    struct hm_range range = {
        .kind = HM_MEMORY_MAPPED, .address = address, .bytes = bytes, .owner = physical};

    if (physical == NULL || physical->handles == 0 || flags != 0 || offset != 0 || bytes == 0 ||
        bytes % HM_BLOCK_BYTES != 0 || address % HM_BLOCK_BYTES != 0 || bytes > physical->bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (*find_reservation(address, bytes) == NULL || occupied(address, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (!back(address, bytes, physical))
        return CUDA_ERROR_OUT_OF_MEMORY;
    range.card = physical->card;
    physical->mappings++;
    hm_range_add(&range);
    return CUDA_SUCCESS;
}

/* The mapping that starts there and ends by `end`, or NULL. */
static struct hm_range *
mapping(uint64_t address, uint64_t end)
{
    struct hm_range *range = hm_range_at(address);

    if (range == NULL || range->kind != HM_MEMORY_MAPPED || range->address != address ||
        address + range->bytes > end)
        return NULL;
    return range;
}

/* Several neighbouring mappings may be named at once, but only whole ones. */
static bool
whole_mappings(uint64_t address, uint64_t end)
{
    while (address < end) {
        const struct hm_range *range = mapping(address, end);

        if (range == NULL)
            return false;
        address += range->bytes;
    }
    return true;
}

static void
unmap(struct hm_range *range)
{
    struct hm_physical *physical = range->owner;

    back(range->address, range->bytes, NULL);
    hm_memory_delete(range);
    physical->mappings--;
    hm_physical_settle(physical);
}

HM_EXPORT CUresult
cuMemUnmap(CUdeviceptr address, size_t bytes)
{
    HM_ENTER(HM_INITIALIZED);
    uint64_t end = address + bytes;

    if (bytes == 0 || !whole_mappings(address, end))
        return CUDA_ERROR_INVALID_VALUE;
    while (address < end) {
        struct hm_range *range = mapping(address, end);

        address += range->bytes;
        unmap(range);
    }
    return CUDA_SUCCESS;
}

static int
protection(CUmemAccess_flags flags)
{
    switch (flags) {
    case CU_MEM_ACCESS_FLAGS_PROT_READ:
        return PROT_READ;
    case CU_MEM_ACCESS_FLAGS_PROT_READWRITE:
        return PROT_READ | PROT_WRITE;
    default:
        return PROT_NONE;
    }
}

HM_EXPORT CUresult
cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *descriptors, size_t count)
{
    HM_ENTER(HM_INITIALIZED);

    if (descriptors == NULL || count == 0 || bytes == 0 ||
        !whole_mappings(address, address + bytes))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        if (descriptors[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
            !hm_device_valid(descriptors[i].location.id))
            return CUDA_ERROR_INVALID_DEVICE;
    }
    for (uint64_t at = address; at < address + bytes; at += hm_range_at(at)->bytes)
        hm_range_at(at)->flags = descriptors[0].flags;
    if (mprotect((void *)address, bytes, protection(descriptors[0].flags)) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_range *range = hm_range_at(address);

    if (flags == NULL || location == NULL || range == NULL || range->kind != HM_MEMORY_MAPPED)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = range->flags;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_range *range = hm_range_at((uint64_t)address);
    struct hm_physical *physical;

    if (handle == NULL || range == NULL || range->kind != HM_MEMORY_MAPPED)
        return CUDA_ERROR_INVALID_VALUE;
    physical = range->owner;
    physical->handles++;
    *handle = physical->handle;
    return CUDA_SUCCESS;
}
