/* Copies whose ends are described: gated if both are on the card. And batches, whose ends are anywhere. */
#include "copy.h"

struct box {
    bool on_card; /* both ends */
    uint64_t bytes;
};

/* Not CU_MEMORYTYPE_UNIFIED: that is any address, of the host's memory too. */
static bool
on_card(CUmemorytype type)
{
    return type == CU_MEMORYTYPE_DEVICE || type == CU_MEMORYTYPE_ARRAY;
}

static struct box
box(CUmemorytype from, CUmemorytype to, uint64_t row_bytes, uint64_t rows)
{
    return (struct box){on_card(from) && on_card(to), row_bytes * rows};
}

/* The driver refuses NULL. */
static struct box
box_2d(const CUDA_MEMCPY2D *copy)
{
    if (copy == NULL)
        return (struct box){0};
    return box(copy->srcMemoryType, copy->dstMemoryType, copy->WidthInBytes, copy->Height);
}

static struct box
box_2d_v1(const CUDA_MEMCPY2D_v1 *copy)
{
    if (copy == NULL)
        return (struct box){0};
    return box(copy->srcMemoryType, copy->dstMemoryType, copy->WidthInBytes, copy->Height);
}

static struct box
box_3d(const CUDA_MEMCPY3D *copy)
{
    if (copy == NULL)
        return (struct box){0};
    return box(copy->srcMemoryType, copy->dstMemoryType, copy->WidthInBytes,
               copy->Height * copy->Depth);
}

static struct box
box_3d_v1(const CUDA_MEMCPY3D_v1 *copy)
{
    if (copy == NULL)
        return (struct box){0};
    return box(copy->srcMemoryType, copy->dstMemoryType, copy->WidthInBytes,
               (uint64_t)copy->Height * copy->Depth);
}

#define BOXED(copy, stream, per_thread, call)                                         \
    ({                                                                                \
        struct box hm_box = copy;                                                     \
        hm_box.on_card ? GATED(hm_work_bytes(hm_box.bytes), stream, per_thread, call) \
                       : hm_copied(hm_box.bytes, REAL(call));                         \
    })

HM_HOOK CUresult
cuMemcpy2D(const CUDA_MEMCPY2D_v1 *pCopy)
{
    return BOXED(box_2d_v1(pCopy), NULL, false, cuMemcpy2D(pCopy));
}

HM_HOOK CUresult
cuMemcpy2D_v2(const CUDA_MEMCPY2D *pCopy)
{
    return BOXED(box_2d(pCopy), NULL, false, cuMemcpy2D_v2(pCopy));
}

HM_HOOK CUresult
cuMemcpy2D_v2_ptds(const CUDA_MEMCPY2D *pCopy)
{
    return BOXED(box_2d(pCopy), NULL, true, cuMemcpy2D_v2_ptds(pCopy));
}

HM_HOOK CUresult
cuMemcpy2DUnaligned(const CUDA_MEMCPY2D_v1 *pCopy)
{
    return BOXED(box_2d_v1(pCopy), NULL, false, cuMemcpy2DUnaligned(pCopy));
}

HM_HOOK CUresult
cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *pCopy)
{
    return BOXED(box_2d(pCopy), NULL, false, cuMemcpy2DUnaligned_v2(pCopy));
}

HM_HOOK CUresult
cuMemcpy2DUnaligned_v2_ptds(const CUDA_MEMCPY2D *pCopy)
{
    return BOXED(box_2d(pCopy), NULL, true, cuMemcpy2DUnaligned_v2_ptds(pCopy));
}

HM_HOOK CUresult
cuMemcpy2DAsync(const CUDA_MEMCPY2D_v1 *pCopy, CUstream hStream)
{
    return BOXED(box_2d_v1(pCopy), hStream, false, cuMemcpy2DAsync(pCopy, hStream));
}

HM_HOOK CUresult
cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *pCopy, CUstream hStream)
{
    return BOXED(box_2d(pCopy), hStream, false, cuMemcpy2DAsync_v2(pCopy, hStream));
}

HM_HOOK CUresult
cuMemcpy2DAsync_v2_ptsz(const CUDA_MEMCPY2D *pCopy, CUstream hStream)
{
    return BOXED(box_2d(pCopy), hStream, true, cuMemcpy2DAsync_v2_ptsz(pCopy, hStream));
}

HM_HOOK CUresult
cuMemcpy3D(const CUDA_MEMCPY3D_v1 *pCopy)
{
    return BOXED(box_3d_v1(pCopy), NULL, false, cuMemcpy3D(pCopy));
}

HM_HOOK CUresult
cuMemcpy3D_v2(const CUDA_MEMCPY3D *pCopy)
{
    return BOXED(box_3d(pCopy), NULL, false, cuMemcpy3D_v2(pCopy));
}

HM_HOOK CUresult
cuMemcpy3D_v2_ptds(const CUDA_MEMCPY3D *pCopy)
{
    return BOXED(box_3d(pCopy), NULL, true, cuMemcpy3D_v2_ptds(pCopy));
}

HM_HOOK CUresult
cuMemcpy3DAsync(const CUDA_MEMCPY3D_v1 *pCopy, CUstream hStream)
{
    return BOXED(box_3d_v1(pCopy), hStream, false, cuMemcpy3DAsync(pCopy, hStream));
}

HM_HOOK CUresult
cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *pCopy, CUstream hStream)
{
    return BOXED(box_3d(pCopy), hStream, false, cuMemcpy3DAsync_v2(pCopy, hStream));
}

HM_HOOK CUresult
cuMemcpy3DAsync_v2_ptsz(const CUDA_MEMCPY3D *pCopy, CUstream hStream)
{
    return BOXED(box_3d(pCopy), hStream, true, cuMemcpy3DAsync_v2_ptsz(pCopy, hStream));
}

static CUresult
peer(const CUDA_MEMCPY3D_PEER *copy, CUresult result)
{
    if (result != CUDA_SUCCESS)
        return result;
    return hm_copied(copy->WidthInBytes * copy->Height * copy->Depth, result);
}

HM_HOOK CUresult
cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *pCopy)
{
    return peer(pCopy, REAL(cuMemcpy3DPeer(pCopy)));
}

HM_HOOK CUresult
cuMemcpy3DPeer_ptds(const CUDA_MEMCPY3D_PEER *pCopy)
{
    return peer(pCopy, REAL(cuMemcpy3DPeer_ptds(pCopy)));
}

HM_HOOK CUresult
cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream)
{
    return peer(pCopy, REAL(cuMemcpy3DPeerAsync(pCopy, hStream)));
}

HM_HOOK CUresult
cuMemcpy3DPeerAsync_ptsz(const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream)
{
    return peer(pCopy, REAL(cuMemcpy3DPeerAsync_ptsz(pCopy, hStream)));
}

static CUresult
batch(const size_t *sizes, size_t count, CUresult result)
{
    uint64_t bytes = 0;

    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++)
        bytes += sizes[i];
    return hm_copied(bytes, result);
}

HM_HOOK CUresult
cuMemcpyBatchAsync(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                   CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs, size_t *failIdx,
                   CUstream hStream)
{
    return batch(sizes, count,
                 REAL(cuMemcpyBatchAsync(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs,
                                         failIdx, hStream)));
}

HM_HOOK CUresult
cuMemcpyBatchAsync_ptsz(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                        CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs,
                        size_t *failIdx, CUstream hStream)
{
    return batch(sizes, count,
                 REAL(cuMemcpyBatchAsync_ptsz(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs,
                                              failIdx, hStream)));
}

HM_HOOK CUresult
cuMemcpyBatchAsync_v2(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                      CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs,
                      CUstream hStream)
{
    return batch(
        sizes, count,
        REAL(cuMemcpyBatchAsync_v2(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, hStream)));
}

HM_HOOK CUresult
cuMemcpyBatchAsync_v2_ptsz(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                           CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs,
                           CUstream hStream)
{
    return batch(sizes, count,
                 REAL(cuMemcpyBatchAsync_v2_ptsz(dsts, srcs, sizes, count, attrs, attrsIdxs,
                                                 numAttrs, hStream)));
}

static CUresult
batch_3d(const CUDA_MEMCPY3D_BATCH_OP *copies, size_t count, CUresult result)
{
    uint64_t bytes = 0;

    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++)
        bytes += copies[i].extent.width * copies[i].extent.height * copies[i].extent.depth;
    return hm_copied(bytes, result);
}

HM_HOOK CUresult
cuMemcpy3DBatchAsync(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx,
                     unsigned long long flags, CUstream hStream)
{
    return batch_3d(opList, numOps,
                    REAL(cuMemcpy3DBatchAsync(numOps, opList, failIdx, flags, hStream)));
}

HM_HOOK CUresult
cuMemcpy3DBatchAsync_ptsz(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx,
                          unsigned long long flags, CUstream hStream)
{
    return batch_3d(opList, numOps,
                    REAL(cuMemcpy3DBatchAsync_ptsz(numOps, opList, failIdx, flags, hStream)));
}

HM_HOOK CUresult
cuMemcpy3DBatchAsync_v2(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags,
                        CUstream hStream)
{
    return batch_3d(opList, numOps, REAL(cuMemcpy3DBatchAsync_v2(numOps, opList, flags, hStream)));
}

HM_HOOK CUresult
cuMemcpy3DBatchAsync_v2_ptsz(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList,
                             unsigned long long flags, CUstream hStream)
{
    return batch_3d(opList, numOps,
                    REAL(cuMemcpy3DBatchAsync_v2_ptsz(numOps, opList, flags, hStream)));
}
