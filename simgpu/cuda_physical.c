#include "cuda_vmm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_handle.h"
#include "cuda_memory.h"

#define GRANULARITY HM_BLOCK_BYTES

static struct hm_physical *physicals;

struct hm_physical *
hm_physical_find(CUmemGenericAllocationHandle handle)
{
    return HM_HANDLE(HM_PHYSICAL, handle);
}

uint64_t
hm_fd_id(int fd, uint64_t *bytes)
{
    struct stat status;

    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
        return 0;
    *bytes = (uint64_t)status.st_size;
    return status.st_ino;
}

/* A new one with one handle, around memory that is already accounted for. */
static struct hm_physical *
physical_new(const CUmemAllocationProp *prop, uint64_t bytes, int fd)
{
    struct hm_physical *physical = hm_allocate(sizeof(*physical));
    uint64_t size;

    physical->handles = 1;
    physical->bytes = bytes;
    physical->prop = *prop;
    physical->on_card = prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    physical->card = physical->on_card ? hm_driver.cards[prop->location.id] : 0;
    physical->fd = fd;
    physical->object_id = fd >= 0 ? hm_fd_id(fd, &size) : 0;
    physical->handle = hm_handle_make(HM_PHYSICAL, physical, NULL);
    physical->next = physicals;
    physicals = physical;
    return physical;
}

static void
unlink_physical(const struct hm_physical *physical)
{
    struct hm_physical **link = &physicals;

    while (*link != physical)
        link = &(*link)->next;
    *link = physical->next;
}

static void
release_card(const struct hm_physical *physical)
{
    hm_state_lock();
    if (physical->fd >= 0)
        hm_object_drop(physical->object_id);
    else
        hm_card_give(physical->card, hm_blocks(physical->bytes));
    hm_state_unlock();
}

void
hm_physical_settle(struct hm_physical *physical)
{
    if (physical->handles > 0 || physical->mappings > 0)
        return;
    if (physical->on_card)
        release_card(physical);
    if (physical->fd >= 0)
        close(physical->fd);
    unlink_physical(physical);
    hm_handle_drop(physical->handle);
    free(physical);
}

static CUresult
check_prop(const CUmemAllocationProp *prop)
{
    if (prop == NULL || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE && !hm_device_valid(prop->location.id))
        return CUDA_ERROR_INVALID_DEVICE;
    if ((prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0)
        return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
}

static bool
take_card(const CUmemAllocationProp *prop, uint64_t bytes, int fd)
{
    uint32_t card = hm_driver.cards[prop->location.id];
    uint64_t size;
    bool taken;

    hm_state_lock();
    taken = fd >= 0 ? hm_object_create(hm_fd_id(fd, &size), card, hm_blocks(bytes))
                    : hm_card_take(card, hm_blocks(bytes));
    hm_state_unlock();
    return taken;
}

HM_EXPORT CUresult
cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop,
            unsigned long long flags)
{
    HM_ENTER(HM_INITIALIZED);
    CUresult result = check_prop(prop);
    int fd = -1;

    if (result != CUDA_SUCCESS)
        return result;
    if (handle == NULL || flags != 0 || bytes == 0 || bytes % GRANULARITY != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (prop->requestedHandleTypes != 0) {
        fd = hm_memory_file("simgpu");
        if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
        !take_card(prop, bytes, fd))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS)
        *handle = physical_new(prop, bytes, fd)->handle;
    else if (fd >= 0)
        close(fd);
    return result;
}

HM_EXPORT CUresult
cuMemRelease(CUmemGenericAllocationHandle handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_physical *physical = hm_physical_find(handle);

    if (physical == NULL || physical->handles == 0)
        return CUDA_ERROR_INVALID_VALUE;
    physical->handles--;
    hm_physical_settle(physical);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop,
                              CUmemAllocationGranularity_flags option)
{
    HM_ENTER(HM_INITIALIZED);
    CUresult result = check_prop(prop);

    (void)option;
    if (result != CUDA_SUCCESS || bytes == NULL)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    *bytes = GRANULARITY;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop,
                                       CUmemGenericAllocationHandle handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_physical *physical = hm_physical_find(handle);

    if (physical == NULL || prop == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *prop = physical->prop;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                             CUmemAllocationHandleType type, unsigned long long flags)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_physical *physical = hm_physical_find(handle);
    int copy;

    if (physical == NULL || shareable == NULL || flags != 0 || physical->fd < 0 ||
        type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    copy = fcntl(physical->fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    *(int *)shareable = copy;
    return CUDA_SUCCESS;
}

/* The device here that is that card, or -1. */
static CUdevice
device_of(int32_t card)
{
    for (CUdevice device = 0; device < hm_driver.device_count; device++) {
        if (hm_driver.cards[device] == (uint32_t)card)
            return device;
    }
    return -1;
}

/* The one this process already has of that object, or NULL. */
static struct hm_physical *
own_physical(uint64_t id)
{
    struct hm_physical *physical = physicals;

    while (physical != NULL && physical->object_id != id)
        physical = physical->next;
    return physical;
}

/* Takes a hold on the object; the device it is on, or an error. */
static CUresult
hold_object(uint64_t id, CUdevice *device)
{
    const struct hm_object *object;
    CUresult result = CUDA_SUCCESS;

    hm_state_lock();
    object = hm_object_find(id);
    if (object == NULL) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        *device = device_of(object->card);
        if (*device < 0)
            result = CUDA_ERROR_INVALID_DEVICE;
        else
            hm_object_hold(id);
    }
    hm_state_unlock();
    return result;
}

static CUresult
import(int fd, CUmemGenericAllocationHandle *handle)
{
    CUmemAllocationProp prop = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
    };
    uint64_t bytes = 0;
    uint64_t id = hm_fd_id(fd, &bytes);
    struct hm_physical *physical = id != 0 ? own_physical(id) : NULL;
    CUresult result;
    int copy;

    if (physical != NULL) {
        physical->handles++;
        *handle = physical->handle;
        return CUDA_SUCCESS;
    }
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return CUDA_ERROR_INVALID_VALUE;
    result = hold_object(id, &prop.location.id);
    if (result != CUDA_SUCCESS) {
        close(copy);
        return result;
    }
    *handle = physical_new(&prop, bytes, copy)->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
                               CUmemAllocationHandleType type)
{
    HM_ENTER(HM_INITIALIZED);

    if (handle == NULL || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    return import((int)(intptr_t)shareable, handle);
}
