#include "cuda_pool.h"
#include "cuda_space.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pools and pool memory of another process, which pays: the descriptor holds a description. */
struct shared_pool {
    uint64_t magic;
    uint32_t card;
};

struct shared_pointer {
    uint64_t magic;
    uint64_t bytes;
    uint64_t offset;
    struct hm_space_share share;
};

#define POOL_MAGIC 0x6c6f6f706d6973ull

_Static_assert(sizeof(struct shared_pointer) <= sizeof(CUmemPoolPtrExportData), "64 bytes");

HM_EXPORT CUresult
cuMemPoolExportToShareableHandle(void *shareable, CUmemoryPool handle,
                                 CUmemAllocationHandleType type, unsigned long long flags)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_pool *pool = hm_pool_find(handle);
    struct shared_pool content = {.magic = POOL_MAGIC};
    int fd;

    if (pool == NULL || shareable == NULL || flags != 0 ||
        type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
        (pool->props.handleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0)
        return CUDA_ERROR_INVALID_VALUE;
    content.card = pool->card;
    fd = hm_memory_file("simgpu-pool");
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    if (pwrite(fd, &content, sizeof(content), 0) != sizeof(content)) {
        close(fd);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    *(int *)shareable = fd;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolImportFromShareableHandle(CUmemoryPool *handle, void *shareable,
                                   CUmemAllocationHandleType type, unsigned long long flags)
{
    HM_ENTER(HM_INITIALIZED);
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .handleTypes = type};
    struct shared_pool content;
    struct hm_pool *pool;

    if (handle == NULL || flags != 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
        pread((int)(intptr_t)shareable, &content, sizeof(content), 0) != sizeof(content) ||
        content.magic != POOL_MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    pool = hm_pool_new(content.card, &props);
    pool->imported = true;
    *handle = pool->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr address)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_range *range = hm_range_at(address);
    struct shared_pointer made = {.magic = POOL_MAGIC};

    if (data == NULL || range == NULL || range->kind != HM_MEMORY_POOL)
        return CUDA_ERROR_INVALID_VALUE;
    made.bytes = range->bytes;
    made.offset = address - range->address;
    made.share = hm_space_share(range->address, range->bytes);
    memset(data, 0, sizeof(*data));
    memcpy(data, &made, sizeof(made));
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuMemPoolImportPointer(CUdeviceptr *address, CUmemoryPool handle, CUmemPoolPtrExportData *data)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_pool *pool = hm_pool_find(handle);
    struct hm_range range = {.kind = HM_MEMORY_POOL, .owner = pool};
    struct shared_pointer given;

    if (address == NULL || data == NULL || pool == NULL || !pool->imported)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&given, data, sizeof(given));
    if (given.magic != POOL_MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    range.card = pool->card;
    range.bytes = given.bytes;
    range.address = hm_space_join(&given.share);
    if (range.address == 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    hm_range_add(&range);
    *address = range.address + given.offset;
    return CUDA_SUCCESS;
}
