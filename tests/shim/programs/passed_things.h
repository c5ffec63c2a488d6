/*
 * One of everything that an entry point may be called with: memory, streams, graphs, code, objects of another process.
 * Made anew where the last call used it up, so that each call finds what it needs; taken before the card is looked at.
 */
#pragma once
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#ifndef NVML_NO_UNVERSIONED_FUNC_DEFS
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#endif
#include <cuda.h>
#include <nvml.h>

#define BLOCK_BYTES 2097152
#define HOST_BYTES 65536
#define SCRATCH_BYTES 65536

struct things {
    CUcontext context;
    CUgreenCtx green;
    CUdeviceptr device, other, managed, pooled, freed_later, reserved, mapped, foreign_pooled;
    CUdeviceptr foreign; /* opened over IPC */
    CUmemoryPool pool, foreign_pool;
    CUmemGenericAllocationHandle handle;
    void *host, *pinned, *registered, *registered_host;
    CUstream stream, stream_v1;
    CUevent event, event_v1;
    CUarray array, deferred, row; /* row: of one dimension, 4096 bytes */
    CUmipmappedArray mipmap, deferred_mipmap;
    CUmodule module;
    CUfunction function;
    CUlibrary library;
    CUkernel kernel;
    CUlinkState link;
    CUtexref texref;
    CUtexObject texture;
    CUsurfObject surface;
    CUuserObject user;
    CUexternalMemory external;
    CUexternalSemaphore semaphore;
    CUgraph graph, clone;
    CUgraphExec exec;
    CUgraphNode empty, kernel_node, copy_node, fill_node, host_node, batch_node, signal_node,
        wait_node;
    CUgraphNode record_node, wait_event_node, child_node, take_node, give_node;
    CUdeviceptr node_memory;
    CUasyncCallbackHandle notification;
    nvmlDevice_t card;
};

/* What the other process exports. */
struct foreign {
    CUipcMemHandle memory;
    CUipcEventHandle event;
    CUmemPoolPtrExportData pointer;
    CUdeviceptr size;
};

extern struct things things;
extern struct foreign foreign;
extern int foreign_pool_fd, own_pool_fd;
extern char scratch
    [16][SCRATCH_BYTES]; /* where the Nth argument of a call may be written; zeroed before each */

/* Parameters of the usual shapes. */
extern CUDA_MEMCPY2D copy_2d;
extern CUDA_MEMCPY3D copy_3d;
extern CUDA_MEMCPY3D_PEER copy_peer;
extern CUDA_MEMCPY2D_v1 copy_2d_v1;
extern CUDA_MEMCPY3D_v1 copy_3d_v1;
extern CUDA_KERNEL_NODE_PARAMS kernel_params;
extern CUDA_KERNEL_NODE_PARAMS_v1 kernel_params_v1;
extern CUDA_MEMSET_NODE_PARAMS fill_params;
extern CUDA_HOST_NODE_PARAMS host_params;
extern CUDA_MEM_ALLOC_NODE_PARAMS take_params;
extern CUDA_BATCH_MEM_OP_NODE_PARAMS batch_params;
extern CUDA_EXT_SEM_SIGNAL_NODE_PARAMS signal_params;
extern CUDA_EXT_SEM_WAIT_NODE_PARAMS wait_params;
extern CUgraphNodeParams any_params;
extern CUlaunchConfig launch;
extern const char passed_code[]; /* PTX: hm_spin and the variable hm_word */
extern void *kernel_arguments[2];
extern CUDA_RESOURCE_DESC texture_source, surface_source;
extern CUDA_TEXTURE_DESC texture_look;
extern CUDA_ARRAY_DESCRIPTOR array_shape;
extern CUmemAllocationProp device_property;
extern CUmemAccessDesc device_access;
extern CUmemLocation device_location;
extern CUmemcpyAttributes copy_attributes;
extern CUDA_MEMCPY3D_BATCH_OP copy_operation;
extern CUstreamBatchMemOpParams write_operation;

/* In front of everything: starts the other process, which exports its memory. */
void passed_start_other(void);
/* After cuInit, with a context. */
void passed_make(void);
/* Before each call: replaces what the last one used up. */
void passed_renew(void);
