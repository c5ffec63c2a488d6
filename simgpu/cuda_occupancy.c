#include "cuda_function.h"

#define SHARED_PER_SM 233472
#define THREADS_PER_SM 2048
#define BLOCKS_PER_SM 32

/* By threads and shared memory; registers are not known. */
static int
blocks_per_sm(const struct hm_function *function, int block, size_t dynamic)
{
    size_t shared = function->shared_bytes + dynamic + 1024;
    int by_threads = THREADS_PER_SM / block;
    int by_shared = (int)(SHARED_PER_SM / shared);
    int fit = by_threads < by_shared ? by_threads : by_shared;

    return fit < BLOCKS_PER_SM ? fit : BLOCKS_PER_SM;
}

static CUresult
active_blocks(int *blocks, CUfunction handle, int block, size_t dynamic)
{
    const struct hm_function *function = hm_function_find(handle);

    if (function == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (blocks == NULL || block <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    *blocks = blocks_per_sm(function, block, dynamic);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block,
                                            size_t dynamic)
{
    HM_ENTER(HM_CURRENT);
    return active_blocks(blocks, function, block, dynamic);
}

HM_EXPORT CUresult
cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int block,
                                                     size_t dynamic, unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    (void)flags;
    return active_blocks(blocks, function, block, dynamic);
}

static CUresult
potential(int *grid, int *block, CUfunction handle, size_t dynamic, int limit)
{
    const struct hm_function *function = hm_function_find(handle);

    if (function == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (grid == NULL || block == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *block = limit > 0 && limit < 1024 ? limit : 1024;
    *grid = HM_CARD_SMS * blocks_per_sm(function, *block, dynamic);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction function,
                                 CUoccupancyB2DSize dynamic_of, size_t dynamic, int limit)
{
    HM_ENTER(HM_CURRENT);
    (void)dynamic_of;
    return potential(grid, block, function, dynamic, limit);
}

HM_EXPORT CUresult
cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, CUfunction function,
                                          CUoccupancyB2DSize dynamic_of, size_t dynamic, int limit,
                                          unsigned int flags)
{
    HM_ENTER(HM_CURRENT);
    (void)dynamic_of;
    (void)flags;
    return potential(grid, block, function, dynamic, limit);
}

HM_EXPORT CUresult
cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamic, CUfunction handle, int blocks, int block)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_function *function = hm_function_find(handle);

    if (function == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (dynamic == NULL || blocks <= 0 || block <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    *dynamic = SHARED_PER_SM / (size_t)blocks - 1024 - function->shared_bytes;
    return CUDA_SUCCESS;
}
