/*
 * Physical memory of cuMemCreate. It lives while a handle names it or something maps it, whatever comes first and goes
 * last, so each of these holds it, and its charge goes with the last hold.
 *
 * Memory of another process (imported) is charged to who made it, as long as that process owns it. So that it can be
 * charged afterwards, each process tells in its slot what it exported and still owns, and what it imported and holds.
 */
#pragma once
#include "quota.h"

struct hm_physical;

/* Settle cuMemCreate: on success the charge lives with the memory. Returns result. */
CUresult hm_physical_created(struct hm_charge *charge, const CUmemGenericAllocationHandle *handle,
                             CUresult result);

/* A handle came from another process. Returns result. */
CUresult hm_physical_imported(const CUmemGenericAllocationHandle *handle, CUresult result);

/* The memory of a handle was exported: another process may hold it from now on. */
void hm_physical_exported(CUmemGenericAllocationHandle handle);

/* Another reference to the handle that maps address. Returns result. */
CUresult hm_physical_retained(CUmemGenericAllocationHandle handle, const void *address,
                              CUresult result);

/* Take one reference from a handle, before the driver does: the number may name other memory right after. */
struct hm_physical *hm_physical_take(CUmemGenericAllocationHandle handle);
/* Settle cuMemRelease. physical: from hm_physical_take, NULL for a handle that is not ours. Returns result. */
CUresult hm_physical_released(struct hm_physical *physical, CUmemGenericAllocationHandle handle,
                              CUresult result);

/* Hold the memory of a handle over a call. NULL: not ours. */
struct hm_physical *hm_physical_hold(CUmemGenericAllocationHandle handle);
/* Settle cuMemMap: on success the mapping takes the hold over. Returns result. */
CUresult hm_physical_mapped(struct hm_physical *physical, CUdeviceptr address, size_t bytes,
                            size_t offset, CUresult result);

/* cuMemUnmap is about to be called: a call in flight, that hm_physical_unmapped ends. */
struct hm_charge hm_physical_unmapping(CUdeviceptr address);
/* Every mapping inside the range is gone. Returns result. */
CUresult hm_physical_unmapped(struct hm_charge *flight, CUdeviceptr address, size_t bytes,
                              CUresult result);

/* What cuMemMapArrayAsync mapped into sparse and deferred arrays, and unmapped. Returns result. */
CUresult hm_physical_tiled(const CUarrayMapInfo *list, unsigned int count, CUresult result);
/* An array or mipmap is gone, and with it what was mapped into it. */
void hm_physical_untile(const void *array);

/* In a fork child: the parent's memory is not ours. */
void hm_physical_after_fork_child(void);
