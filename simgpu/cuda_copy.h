/* Copies: every form is a box of rows, described as for cuMemcpy3DPeer. */
#pragma once

#include "cuda_stream.h"

/* Fills in the operation and how long it takes; INVALID_VALUE when it does not fit its memory. */
CUresult hm_copy_prepare(const CUDA_MEMCPY3D_PEER *copy, struct hm_op *op);
/* Puts a copy on a stream; `wait`: until it is done. */
CUresult hm_copy_add(const struct hm_call *call, CUstream stream, const CUDA_MEMCPY3D_PEER *copy,
                     bool wait);
CUDA_MEMCPY3D_PEER hm_copy_from_3d(const CUDA_MEMCPY3D *copy);
CUDA_MEMCPY3D hm_copy_to_3d(const CUDA_MEMCPY3D_PEER *copy);
CUresult hm_set_prepare(const CUDA_MEMSET_NODE_PARAMS *set, struct hm_op *op);
