#include "cuda_range.h"

#include <string.h>

#include "cuda_memory.h"
#include "cuda_space.h"
#include "cuda_stream.h"

/* Memory of another process, which pays. The handle says whose it is, so that one of a dead process is
 * recognized. */
struct ipc_handle {
    uint64_t magic;
    uint64_t slot;
    uint64_t generation;
    uint64_t offset; /* of the address in the shared blocks */
    struct hm_space_share share;
    uint32_t card;
};

#define IPC_MAGIC 0x636970676d6973ull

_Static_assert(sizeof(struct ipc_handle) <= sizeof(CUipcMemHandle), "the handle has 64 bytes");

HM_EXPORT CUresult
cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_range *range = hm_range_at(address);
    struct ipc_handle made = {.magic = IPC_MAGIC};
    uint64_t start;
    uint64_t bytes;

    if (handle == NULL || range == NULL || range->kind != HM_MEMORY_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    made.slot = (uint64_t)hm_process_slot();
    made.generation = hm_driver.state->slots[made.slot].generation;
    hm_memory_blocks(range, &start, &bytes);
    made.share = hm_space_share(start, bytes);
    made.offset = range->address - start;
    made.card = range->card;
    memset(handle, 0, sizeof(*handle));
    memcpy(handle, &made, sizeof(made));
    return CUDA_SUCCESS;
}

static bool
owner_lives(const struct ipc_handle *handle)
{
    bool lives;

    hm_state_lock();
    hm_process_reap();
    lives = handle->slot < HM_SLOTS &&
            hm_driver.state->slots[handle->slot].generation == handle->generation;
    hm_state_unlock();
    return lives;
}

HM_EXPORT CUresult
cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    struct ipc_handle given;
    struct hm_range range = {.kind = HM_MEMORY_IPC, .ctx = call.ctx};

    memcpy(&given, &handle, sizeof(given));
    if (address == NULL || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS || given.magic != IPC_MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    if (!owner_lives(&given))
        return CUDA_ERROR_INVALID_HANDLE;
    if ((int)given.slot == hm_process_slot())
        return CUDA_ERROR_INVALID_CONTEXT;
    range.card = given.card;
    range.bytes = given.share.bytes;
    range.address = hm_space_join(&given.share);
    if (range.address == 0)
        return CUDA_ERROR_MAP_FAILED;
    hm_range_add(&range);
    *address = range.address + given.offset;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuIpcCloseMemHandle(CUdeviceptr address)
{
    HM_ENTER(HM_CURRENT);
    struct hm_range *range = hm_range_at(address);

    if (range == NULL || range->kind != HM_MEMORY_IPC)
        return CUDA_ERROR_INVALID_VALUE;
    hm_context_drain(call.ctx);
    hm_memory_delete(range);
    return CUDA_SUCCESS;
}
