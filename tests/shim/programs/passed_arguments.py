"""What each excused entry point is called with: C expressions over passed_things.h, by parameter or for a whole call.

A parameter is looked up as `name:type`, then by type, then by name; a pointer that nothing names is a zeroed buffer.
"""

from __future__ import annotations

import re

from abi.entries import Entry

BY_TYPE = {
    "CUdeviceptr": "things.device",
    "CUdeviceptr_v1": "(CUdeviceptr_v1)things.device",
    "CUstream": "things.stream",
    "CUevent": "things.event",
    "CUarray": "things.array",
    "CUmipmappedArray": "things.mipmap",
    "CUcontext": "things.context",
    "CUdevice": "0",
    "CUgraph": "things.graph",
    "CUgraphExec": "things.exec",
    "CUfunction": "things.function",
    "CUmodule": "things.module",
    "CUlibrary": "things.library",
    "CUkernel": "things.kernel",
    "CUmemoryPool": "things.pool",
    "CUmemGenericAllocationHandle": "things.handle",
    "CUlinkState": "things.link",
    "CUtexref": "things.texref",
    "CUuserObject": "things.user",
    "CUexternalMemory": "things.external",
    "CUmemLocation": "device_location",
    "CUmemLocation *": "&device_location",
    "const CUmemLocation *": "&device_location",
    "const CUmemAllocationProp *": "&device_property",
    "const CUmemAccessDesc *": "&device_access",
    "const CUgraphNode *": "NULL",
    "const CUgraphEdgeData *": "NULL",
    "const CUDA_MEMCPY2D *": "&copy_2d",
    "const CUDA_MEMCPY3D *": "&copy_3d",
    "const CUDA_MEMCPY2D_v1 *": "&copy_2d_v1",
    "const CUDA_MEMCPY3D_v1 *": "&copy_3d_v1",
    "const CUDA_MEMCPY3D_PEER *": "&copy_peer",
    "const CUDA_KERNEL_NODE_PARAMS *": "&kernel_params",
    "const CUDA_KERNEL_NODE_PARAMS_v1 *": "&kernel_params_v1",
    "const CUDA_MEMSET_NODE_PARAMS *": "&fill_params",
    "const CUDA_HOST_NODE_PARAMS *": "&host_params",
    "const CUDA_BATCH_MEM_OP_NODE_PARAMS *": "&batch_params",
    "const CUDA_EXT_SEM_SIGNAL_NODE_PARAMS *": "&signal_params",
    "const CUDA_EXT_SEM_WAIT_NODE_PARAMS *": "&wait_params",
    "CUgraphNodeParams *": "&any_params",
    "const CUlaunchConfig *": "&launch",
    "const CUDA_RESOURCE_DESC *": "&texture_source",
    "const CUDA_TEXTURE_DESC *": "&texture_look",
    "const CUDA_RESOURCE_VIEW_DESC *": "NULL",
    "const CUDA_ARRAY_DESCRIPTOR *": "&array_shape",
    "CUmemcpyAttributes *": "&copy_attributes",
    "CUDA_MEMCPY3D_BATCH_OP *": "&copy_operation",
    "CUstreamBatchMemOpParams *": "&write_operation",
    "CUhostFn": "nothing",
    "nvmlDevice_t": "things.card",
    "float": "0",
}
BY_NAME = {
    **dict.fromkeys(("ByteCount", "byteCount", "bytesize"), "4096"),
    **dict.fromkeys(("N", "Width"), "64"),
    "Height": "4",
    **dict.fromkeys(("dstPitch", "Pitch"), "512"),
    **dict.fromkeys(("gridDimX", "gridDimY", "gridDimZ", "blockDimX", "blockDimY", "blockDimZ"), "1"),
    **dict.fromkeys(("grid_width", "grid_height"), "1"),
    **dict.fromkeys(("count", "numOps", "numAttrs", "numPrefetchLocs"), "1"),
    "dsts": "(CUdeviceptr[]){things.other}",
    "srcs": "(CUdeviceptr[]){things.device}",
    "sizes": "(size_t[]){4096}",
    "attrsIdxs": "(size_t[]){0}",
    "prefetchLocIdxs": "(size_t[]){0}",
    "dptrs": "(CUdeviceptr[]){things.managed}",
    "kernelParams": "kernel_arguments",
    "extra": "NULL",
    "dstHost": "things.host",
    "srcHost": "things.host",
    "dstDevice": "things.other",
    "childGraph": "things.clone",
    "pid": "(int)getpid()",
    "numExtSems": "0",
    "name": '"hm_word"',
}
# Parameters of the same name that mean something else: the old 32-bit pointers, and a buffer for a name.
EXCEPT = {("CUdeviceptr_v1", "dstDevice"), ("CUdevice", "dstDevice"), ("char *", "name"), ("const char **", "name")}
NODES = {
    "Kernel": "things.kernel_node",
    "Memcpy": "things.copy_node",
    "Memset": "things.fill_node",
    "HostNode": "things.host_node",
    "BatchMemOp": "things.batch_node",
    "EventRecord": "things.record_node",
    "EventWait": "things.wait_event_node",
    "SignalNode": "things.signal_node",
    "WaitNode": "things.wait_node",
    "ChildGraph": "things.child_node",
    "MemAlloc": "things.take_node",
    "MemFree": "things.give_node",
    "Node": "things.fill_node",
}
LINKED = "things.link, CU_JIT_INPUT_PTX, (void *)passed_code, strlen(passed_code) + 1, NULL, 0, NULL, NULL"
MANAGED = "things.managed, BLOCK_BYTES"
TILE = (
    "(void *)things.device, (cuuint64_t[]){64, 64, 8}, (cuuint64_t[]){64, 4096}, %s, (cuuint32_t[]){1, 1, 1}, "
    "CU_TENSOR_MAP_INTERLEAVE_NONE, %s CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE, "
    "CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE"
)
TILE_HEAD = "(CUtensorMap *)scratch[0], CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, "
CALLS = {
    "cuMemFreeHost": "TAKE(things.pinned)",
    "cuMemHostAlloc": "(void **)scratch[0], 4096, CU_MEMHOSTALLOC_DEVICEMAP",
    "cuMemHostRegister": "things.host, 4096, 0",
    "cuMemHostRegister_v2": "(char *)things.host + 8192, 4096, 0",
    "cuMemHostUnregister": "TAKE(things.registered)",
    "cuMemHostGetDevicePointer": "(CUdeviceptr_v1 *)scratch[0], things.pinned, 0",
    "cuMemHostGetDevicePointer_v2": "(CUdeviceptr *)scratch[0], things.pinned, 0",
    "cuExternalMemoryGetMappedBuffer": "(CUdeviceptr *)scratch[0], things.external, "
    "&(CUDA_EXTERNAL_MEMORY_BUFFER_DESC){.size = BLOCK_BYTES}",
    "cuArrayGetMemoryRequirements": "(CUDA_ARRAY_MEMORY_REQUIREMENTS *)scratch[0], things.deferred, 0",
    "cuMipmappedArrayGetMemoryRequirements": "(CUDA_ARRAY_MEMORY_REQUIREMENTS *)scratch[0], things.deferred_mipmap, 0",
    "cuMemHostGetFlags": "(unsigned int *)scratch[0], things.pinned",
    "cuMemAddressFree": "TAKE(things.reserved), BLOCK_BYTES",
    "cuMemAddressReserve": "(CUdeviceptr *)scratch[0], BLOCK_BYTES, 0, 0, 0",
    "cuGraphAddMemAllocNode": "&things.take_node, things.graph, NULL, 0, &take_params",
    "cuGraphAddMemFreeNode": "&things.give_node, things.graph, &things.take_node, 1, take_params.dptr",
    "cuGraphAddDependencies": "things.graph, &things.empty, &things.kernel_node, 1",
    "cuGraphAddDependencies_v2": "things.graph, &things.kernel_node, &things.copy_node, NULL, 1",
    "cuGraphDestroy": "({ CUgraph graph; cuGraphCreate(&graph, 0); graph; })",
    "cuGraphDestroyNode": "({ CUgraphNode node; cuGraphAddEmptyNode(&node, things.graph, NULL, 0); node; })",
    "cuGraphRetainUserObject": "things.graph, things.user, 1, 0",
    "cuGraphReleaseUserObject": "({ cuGraphRetainUserObject(things.graph, things.user, 1, 0); things.graph; }), "
    "things.user, 1",
    "cuGraphNodeFindInClone": "(CUgraphNode *)scratch[0], things.kernel_node, things.clone",
    "cuGraphExecUpdate": "things.exec, things.clone, (CUgraphNode *)scratch[2], (CUgraphExecUpdateResult *)scratch[3]",
    "cuGraphExecUpdate_v2": "things.exec, things.clone, (CUgraphExecUpdateResultInfo *)scratch[2]",
    "cuGraphConditionalHandleCreate": "(CUgraphConditionalHandle *)scratch[0], things.graph, things.context, 0, 0",
    "cuUserObjectCreate": "(CUuserObject *)scratch[0], NULL, nothing, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC",
    "cuUserObjectRelease": "TAKE(things.user), 1",
    "cuUserObjectRetain": "things.user, 1",
    "cuLinkCreate": "0, NULL, NULL, (CUlinkState *)scratch[3]",
    "cuLinkCreate_v2": "0, NULL, NULL, (CUlinkState *)scratch[3]",
    "cuLinkAddData": LINKED,
    "cuLinkAddData_v2": LINKED,
    "cuLinkAddFile": 'things.link, CU_JIT_INPUT_PTX, "/nowhere.ptx", 0, NULL, NULL',
    "cuLinkAddFile_v2": 'things.link, CU_JIT_INPUT_PTX, "/nowhere.ptx", 0, NULL, NULL',
    "cuLinkDestroy": "TAKE(things.link)",
    "cuLogsRegisterCallback": "(CUlogsCallback)(void *)nothing, NULL, (CUlogsCallbackHandle *)scratch[2]",
    "cuLogsDumpToMemory": "NULL, scratch[1], (size_t[]){SCRATCH_BYTES}, 0",
    "cuTensorMapEncodeTiled": TILE_HEAD + TILE % ("(cuuint32_t[]){16, 16, 1}", ""),
    "cuTensorMapEncodeIm2col": TILE_HEAD + TILE % ("(int[]){0}, (int[]){0}, 16, 16", ""),
    "cuTensorMapEncodeIm2colWide": TILE_HEAD + TILE % ("0, 0, 16, 16", "CU_TENSOR_MAP_IM2COL_WIDE_MODE_W,"),
    "cuIpcOpenMemHandle": "(CUdeviceptr *)scratch[0], foreign.memory, 1",
    "cuIpcOpenMemHandle_v2": "(CUdeviceptr *)scratch[0], foreign.memory, 1",
    "cuIpcCloseMemHandle": "TAKE(things.foreign)",
    "cuIpcOpenEventHandle": "(CUevent *)scratch[0], foreign.event",
    "cuMemPoolExportPointer": "(CUmemPoolPtrExportData *)scratch[0], things.pooled",
    "cuMemPoolImportPointer": "(CUdeviceptr *)scratch[0], things.foreign_pool, &foreign.pointer",
    "cuMemPoolExportToShareableHandle": "scratch[0], things.pool, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0",
    "cuMemPoolImportFromShareableHandle": "(CUmemoryPool *)scratch[0], (void *)(intptr_t)foreign_pool_fd, "
    "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0",
    "cuMemPoolGetAttribute": "things.pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, scratch[2]",
    "cuMemPoolSetAttribute": "things.pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (cuuint64_t[]){UINT64_MAX}",
    "cuMemGetHandleForAddressRange": "scratch[0], things.mapped, BLOCK_BYTES, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0",
    "cuMemSetAccess": "things.mapped, BLOCK_BYTES, &device_access, 1",
    "cuMemGetAccess": "(unsigned long long *)scratch[0], &device_location, things.mapped",
    "cuMemGetDefaultMemPool": "(CUmemoryPool *)scratch[0], &device_location, CU_MEM_ALLOCATION_TYPE_PINNED",
    "cuMemGetMemPool": "(CUmemoryPool *)scratch[0], &device_location, CU_MEM_ALLOCATION_TYPE_PINNED",
    "cuMulticastCreate": "(CUmemGenericAllocationHandle *)scratch[0], "
    "&(CUmulticastObjectProp){.numDevices = 1, .size = BLOCK_BYTES}",
    "cuLaunchCooperativeKernelMultiDevice": "&(CUDA_LAUNCH_PARAMS){.function = things.function, .gridDimX = 1, "
    ".gridDimY = 1, .gridDimZ = 1, .blockDimX = 1, .blockDimY = 1, .blockDimZ = 1, .hStream = things.stream, "
    ".kernelParams = kernel_arguments}, 1, 0",
    "cuLaunchHostFunc": "things.stream, nothing, NULL",
    "cuLaunchHostFunc_ptsz": "things.stream, nothing, NULL",
    "cuMemAdvise": MANAGED + ", CU_MEM_ADVISE_SET_ACCESSED_BY, 0",
    "cuMemAdvise_v2": MANAGED + ", CU_MEM_ADVISE_SET_ACCESSED_BY, device_location",
    "cuMemPrefetchAsync": MANAGED + ", 0, things.stream",
    "cuMemPrefetchAsync_ptsz": MANAGED + ", 0, things.stream",
    "cuMemPrefetchAsync_v2": MANAGED + ", device_location, 0, things.stream",
    "cuMemPrefetchAsync_v2_ptsz": MANAGED + ", device_location, 0, things.stream",
    "cuStreamAttachMemAsync": "things.stream, things.managed, 0, CU_MEM_ATTACH_GLOBAL",
    "cuStreamAttachMemAsync_ptsz": "things.stream, things.managed, 0, CU_MEM_ATTACH_GLOBAL",
    "cuMemRangeGetAttribute": "scratch[0], 4, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, " + MANAGED,
    "cuMemRangeGetAttributes": "(void *[]){scratch[0]}, (size_t[]){4}, "
    "(CUmem_range_attribute[]){CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY}, 1, " + MANAGED,
    "cuStreamDestroy": "TAKE(things.stream_v1)",
    "cuStreamDestroy_v2": "TAKE(things.stream_v1)",
    "cuEventDestroy": "TAKE(things.event_v1)",
    "cuEventDestroy_v2": "TAKE(things.event_v1)",
    "cuGreenCtxStreamCreate": "(CUstream *)scratch[0], things.green, CU_STREAM_NON_BLOCKING, 0",
    "cuTexObjectDestroy": "TAKE(things.texture)",
    "cuSurfObjectCreate": "(CUsurfObject *)scratch[0], &surface_source",
    "cuSurfObjectDestroy": "TAKE(things.surface)",
    "cuTexRefDestroy": "({ CUtexref texref = NULL; cuTexRefCreate(&texref); texref; })",
    "cuTexRefSetArray": "things.texref, things.array, CU_TRSA_OVERRIDE_FORMAT",
    "cuTexRefSetMipmappedArray": "things.texref, things.mipmap, CU_TRSA_OVERRIDE_FORMAT",
    "cuTexRefSetAddress2D_v2": "things.texref, &array_shape, things.device, 512",
    "cuTexRefSetAddress2D_v3": "things.texref, &array_shape, things.device, 512",
    "cuDestroyExternalSemaphore": "things.semaphore",
    "cuLibraryGetUnifiedFunction": '(void **)scratch[0], things.library, "hm_spin"',
    "cuLibraryEnumerateKernels": "(CUkernel *)scratch[0], 1, things.library",
    "cuModuleEnumerateFunctions": "(CUfunction *)scratch[0], 1, things.module",
    "cuCtxGetLimit": "(size_t *)scratch[0], CU_LIMIT_MALLOC_HEAP_SIZE",
    "cuDeviceSetGraphMemAttribute": "0, CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, scratch[2]",
    "cuDeviceRegisterAsyncNotification": "0, (CUasyncCallback)(void *)nothing, NULL, &things.notification",
    "cuDeviceUnregisterAsyncNotification": "0, things.notification",
    "cuPointerGetAttribute": "scratch[0], CU_POINTER_ATTRIBUTE_MEMORY_TYPE, things.device",
    "cuPointerGetAttributes": "1, (CUpointer_attribute[]){CU_POINTER_ATTRIBUTE_MEMORY_TYPE}, (void *[]){scratch[2]}, "
    "things.device",
    "cuPointerSetAttribute": "(int[]){1}, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, things.device",
    "cuKernelSetAttribute": "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 0, things.kernel, 0",
    "cuOccupancyAvailableDynamicSMemPerBlock": "(size_t *)scratch[0], things.function, 1, 32",
    "nvmlSystemGetProcessName": "(unsigned int)getpid(), scratch[1], 64",
}


def arguments(entry: Entry) -> str:
    """Return the arguments of a plausible call of an entry, in C."""
    if entry.name in CALLS:
        return CALLS[entry.name]
    return ", ".join(_argument(entry.name, number, text) for number, text in enumerate(entry.parameters))


def _argument(entry: str, number: int, text: str) -> str:
    found = re.fullmatch(r"(.*?)\s*(\w+)(\[\d*\])?", text)
    assert found is not None, f"{entry}: what is the parameter {text}?"
    kind, name = re.sub(r"\s*\*", " *", found[1]).replace("* *", "**"), found[2]
    if kind == "CUgraphNode":
        return next(node for part, node in NODES.items() if part in entry)
    if name in BY_NAME and (kind, name) not in EXCEPT and not (BY_NAME[name].isdigit() and "*" in kind):
        return BY_NAME[name]
    if kind == "CUarray" and re.search("Memcpy[ADH]to[ADH]", entry):
        return "things.row"
    if kind in BY_TYPE:
        return BY_TYPE[kind]
    if "*" in kind or found[3]:
        return f"(void *)scratch[{number}]"
    return "{0}" if kind in ("CUipcMemHandle", "CUipcEventHandle") else f"({kind})0"
