#include "physical.h"

#include "log.h"
#include "sorted.h"

#include <pthread.h>
#include <stdlib.h>

struct hm_physical {
    struct hm_charge charge;  /* device -1: memory of another process */
    struct hm_physical *next; /* in a list of those that nothing holds any more */
    int device;
    uint32_t holds;       /* references, mappings, tiles, calls in flight; under the mutex */
    uint64_t shown_bytes; /* in our slot, as exported or imported; under the mutex */
};

/* A handle: size counts its references; a mapping: key is its address, size its bytes; a tile of an array: key is a
   hash of its place, size its volume, owner its array. */
static struct hm_sorted handles, mappings, tiles;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* never held across a driver call */

/* One hold less; the last one puts it on the list. The mutex is held. */
static void
let_go(struct hm_physical *physical, struct hm_physical **dead)
{
    if (--physical->holds > 0)
        return;
    physical->next = *dead;
    *dead = physical;
}

/* Say in our slot that so much of it is exported (ours) or imported. The mutex is held, or it is dead. */
static void
show(struct hm_physical *physical, uint64_t bytes)
{
    struct hm_slot *slot = bytes != physical->shown_bytes ? hm_slot() : NULL;
    struct hm_use *use;

    if (slot == NULL || physical->device < 0)
        return;
    use = &slot->use[physical->device];
    __atomic_fetch_add(physical->charge.device >= 0 ? &use->exported_bytes : &use->imported_bytes,
                       bytes - physical->shown_bytes, __ATOMIC_RELAXED);
    physical->shown_bytes = bytes;
}

/* Give the charges of the dead back. The mutex is not held. */
static void
bury(struct hm_physical *dead)
{
    while (dead != NULL) {
        struct hm_physical *next = dead->next;

        show(dead, 0); /* first, so that in between too much is charged and not too little */
        hm_quota_release(&dead->charge);
        free(dead);
        dead = next;
    }
}

static void
drop(struct hm_physical *physical)
{
    struct hm_physical *dead = NULL;

    pthread_mutex_lock(&mutex);
    let_go(physical, &dead);
    pthread_mutex_unlock(&mutex);
    bury(dead);
}

/* Remember new memory under its handle. What can't be remembered stays charged until this process ends. */
static void
remember(CUmemGenericAllocationHandle handle, const struct hm_charge *charge, int device)
{
    struct hm_physical *physical = malloc(sizeof(*physical));
    bool known = false;

    if (physical != NULL) {
        *physical = (struct hm_physical){.charge = *charge, .device = device, .holds = 1};
        pthread_mutex_lock(&mutex);
        known = hm_sorted_insert(&handles, &(struct hm_entry){handle, 1, NULL, physical});
        pthread_mutex_unlock(&mutex);
    }
    if (known)
        return;
    free(physical);
    hm_log_once(
        "no host memory to remember an allocation: it stays charged until this process ends");
}

CUresult
hm_physical_created(struct hm_charge *charge, const CUmemGenericAllocationHandle *handle,
                    CUresult result)
{
    if (charge->device < 0)
        return result;
    if (result != CUDA_SUCCESS) {
        hm_quota_release(charge);
        return result;
    }
    hm_quota_done(charge);
    remember(*handle, charge, charge->device);
    return result;
}

CUresult
hm_physical_imported(const CUmemGenericAllocationHandle *handle, CUresult result)
{
    const struct hm_charge none = {.device = -1};
    CUmemAllocationProp prop;

    if (result != CUDA_SUCCESS || !hm_active() ||
        REAL(cuMemGetAllocationPropertiesFromHandle(&prop, *handle)) != CUDA_SUCCESS ||
        prop.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return result;
    remember(*handle, &none, hm_device_index(prop.location.id));
    return result;
}

void
hm_physical_exported(CUmemGenericAllocationHandle handle)
{
    struct hm_entry *entry;

    pthread_mutex_lock(&mutex);
    entry = hm_sorted_find(&handles, handle);
    if (entry != NULL && entry->physical->charge.device >= 0)
        show(entry->physical, entry->physical->charge.bytes);
    pthread_mutex_unlock(&mutex);
}

/* The mapping that address lies in. The mutex is held. */
static struct hm_entry *
mapping_at(uint64_t address)
{
    size_t at = hm_sorted_lower(&mappings, address + 1);

    if (at == 0 || address - mappings.entry[at - 1].key >= mappings.entry[at - 1].size)
        return NULL;
    return &mappings.entry[at - 1];
}

/* Add a reference to the handle. The mutex is held. */
static void
refer(CUmemGenericAllocationHandle handle, struct hm_physical *physical)
{
    struct hm_entry *entry = hm_sorted_find(&handles, handle);

    if (entry != NULL)
        entry->size++;
    else if (!hm_sorted_insert(&handles, &(struct hm_entry){handle, 1, NULL, physical}))
        return;
    physical->holds++;
}

CUresult
hm_physical_retained(CUmemGenericAllocationHandle handle, const void *address, CUresult result)
{
    struct hm_entry *mapping;

    if (result != CUDA_SUCCESS || !hm_active())
        return result;
    pthread_mutex_lock(&mutex);
    mapping = mapping_at((uintptr_t)address);
    if (mapping != NULL)
        refer(handle, mapping->physical);
    pthread_mutex_unlock(&mutex);
    return result;
}

struct hm_physical *
hm_physical_take(CUmemGenericAllocationHandle handle)
{
    struct hm_physical *physical = NULL;
    struct hm_entry *entry;

    pthread_mutex_lock(&mutex);
    entry = hm_sorted_find(&handles, handle);
    if (entry != NULL) {
        physical = entry->physical;
        if (--entry->size == 0)
            hm_sorted_cut(&handles, (size_t)(entry - handles.entry),
                          (size_t)(entry - handles.entry) + 1);
        if (physical->holds == 1)
            hm_quota_begin(&physical->charge);
    }
    pthread_mutex_unlock(&mutex);
    return physical;
}

CUresult
hm_physical_released(struct hm_physical *physical, CUmemGenericAllocationHandle handle,
                     CUresult result)
{
    if (physical == NULL)
        return result;
    if (result != CUDA_SUCCESS) {
        pthread_mutex_lock(&mutex);
        refer(handle, physical);
        pthread_mutex_unlock(&mutex);
        hm_quota_done(&physical->charge);
    }
    drop(physical);
    return result;
}

struct hm_physical *
hm_physical_hold(CUmemGenericAllocationHandle handle)
{
    struct hm_physical *physical = NULL;
    struct hm_entry *entry;

    pthread_mutex_lock(&mutex);
    entry = hm_sorted_find(&handles, handle);
    if (entry != NULL) {
        physical = entry->physical;
        physical->holds++;
    }
    pthread_mutex_unlock(&mutex);
    return physical;
}

CUresult
hm_physical_mapped(struct hm_physical *physical, CUdeviceptr address, size_t bytes, size_t offset,
                   CUresult result)
{
    uint64_t end = hm_whole_blocks(offset + bytes);
    bool known;

    if (physical == NULL)
        return result;
    if (result != CUDA_SUCCESS) {
        drop(physical);
        return result;
    }
    pthread_mutex_lock(&mutex);
    if (physical->charge.device < 0 && end > physical->shown_bytes)
        show(physical, end); /* nobody told how large an imported allocation is: at least so */
    known = hm_sorted_insert(&mappings, &(struct hm_entry){address, bytes, NULL, physical});
    pthread_mutex_unlock(&mutex);
    if (!known) /* its hold stays, and so does the charge */
        hm_log_once("no host memory to remember a mapping: it stays charged until this process "
                    "ends");
    return result;
}

struct hm_charge
hm_physical_unmapping(CUdeviceptr address)
{
    struct hm_charge flight = {.device = -1};
    struct hm_entry *mapping;

    pthread_mutex_lock(&mutex);
    mapping = mapping_at(address);
    if (mapping != NULL)
        flight.device = mapping->physical->device;
    pthread_mutex_unlock(&mutex);
    hm_quota_begin(&flight);
    return flight;
}

/* After the driver, not before: nobody can map these addresses anew before the program knows that they are free. */
CUresult
hm_physical_unmapped(struct hm_charge *flight, CUdeviceptr address, size_t bytes, CUresult result)
{
    struct hm_physical *dead = NULL;
    size_t from, to;

    if (result == CUDA_SUCCESS) {
        pthread_mutex_lock(&mutex);
        from = to = hm_sorted_lower(&mappings, address);
        for (; to < mappings.count && mappings.entry[to].key - address < bytes; to++)
            let_go(mappings.entry[to].physical, &dead);
        hm_sorted_cut(&mappings, from, to);
        pthread_mutex_unlock(&mutex);
    }
    bury(dead);
    hm_quota_done(flight);
    return result;
}

static uint64_t
mix(uint64_t hash, uint64_t word)
{
    return (hash ^ word) * 0x9e3779b97f4a7c15u ^ hash >> 29;
}

/* Where in which array. Two places with the same hash cost a charge that goes too early or too late. */
static uint64_t
tile_key(const CUarrayMapInfo *info)
{
    uint64_t hash = mix((uintptr_t)info->resource.array, info->subresourceType);

    if (info->subresourceType == CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL)
        return mix(mix(hash, info->subresource.miptail.layer), info->subresource.miptail.offset);
    hash = mix(mix(hash, info->subresource.sparseLevel.level), info->subresource.sparseLevel.layer);
    hash = mix(mix(hash, info->subresource.sparseLevel.offsetX),
               info->subresource.sparseLevel.offsetY);
    return mix(hash, info->subresource.sparseLevel.offsetZ);
}

static uint64_t
tile_volume(const CUarrayMapInfo *info)
{
    if (info->subresourceType == CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL)
        return info->subresource.miptail.size;
    return (uint64_t)info->subresource.sparseLevel.extentWidth *
           info->subresource.sparseLevel.extentHeight * info->subresource.sparseLevel.extentDepth;
}

/* A map replaces what was mapped at its place. An unmap of a part leaves the rest. The mutex is held. */
static void
tile(const CUarrayMapInfo *info, struct hm_physical **dead)
{
    bool map = info->memOperationType == CU_MEM_OPERATION_TYPE_MAP;
    struct hm_entry new = {tile_key(info), tile_volume(info), info->resource.array, NULL};
    struct hm_entry *old = hm_sorted_find(&tiles, new.key), *handle;

    if (old != NULL && !map && old->size > new.size) {
        old->size -= new.size;
        return;
    }
    if (old != NULL) {
        let_go(old->physical, dead);
        hm_sorted_cut(&tiles, (size_t)(old - tiles.entry), (size_t)(old - tiles.entry) + 1);
    }
    handle = map ? hm_sorted_find(&handles, info->memHandle.memHandle) : NULL;
    if (handle == NULL)
        return;
    new.physical = handle->physical;
    new.physical->holds++;
    hm_sorted_insert(&tiles, &new); /* if it can't be, the hold and the charge stay */
}

CUresult
hm_physical_tiled(const CUarrayMapInfo *list, unsigned int count, CUresult result)
{
    struct hm_physical *dead = NULL;

    if (result != CUDA_SUCCESS || !hm_active())
        return result;
    pthread_mutex_lock(&mutex);
    for (unsigned int i = 0; i < count; i++)
        tile(&list[i], &dead);
    pthread_mutex_unlock(&mutex);
    bury(dead);
    return result;
}

void
hm_physical_untile(const void *array)
{
    struct hm_physical *dead = NULL;
    size_t kept = 0;

    if (__atomic_load_n(&tiles.count, __ATOMIC_RELAXED) == 0)
        return;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < tiles.count; i++) {
        if (tiles.entry[i].owner == array)
            let_go(tiles.entry[i].physical, &dead);
        else
            tiles.entry[kept++] = tiles.entry[i];
    }
    hm_sorted_cut(&tiles, kept, tiles.count);
    pthread_mutex_unlock(&mutex);
    bury(dead);
}

/* Another thread may have been in the middle of a table when the process forked, so they are left behind, not freed. */
void
hm_physical_after_fork_child(void)
{
    handles = mappings = tiles = (struct hm_sorted){0};
    pthread_mutex_init(&mutex, NULL);
}
