/* Virtual memory management: physical memory that lives while a handle or a mapping holds it. */
#pragma once

#include "cuda_range.h"

struct hm_physical {
    uint64_t handle;
    int handles; /* references that cuMemRelease gives back */
    int mappings;
    uint64_t bytes;
    CUmemAllocationProp prop;
    bool on_card;
    uint32_t card;
    int fd;             /* shareable: a memfd that holds the data; -1: private */
    uint64_t object_id; /* its inode: the name in the shared state */
    struct hm_physical *next;
};

struct hm_physical *hm_physical_find(CUmemGenericAllocationHandle handle);
/* Ends it when nothing holds it any more. */
void hm_physical_settle(struct hm_physical *physical);
/* The inode that names a memfd; 0 when `fd` is none. */
uint64_t hm_fd_id(int fd, uint64_t *bytes);
