#include "passed_things.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct things things;
struct foreign foreign;
int foreign_pool_fd = -1, own_pool_fd = -1;
char scratch[16][SCRATCH_BYTES] __attribute__((aligned(64)));

CUDA_MEMCPY2D copy_2d;
CUDA_MEMCPY3D copy_3d;
CUDA_MEMCPY3D_PEER copy_peer;
CUDA_MEMCPY2D_v1 copy_2d_v1;
CUDA_MEMCPY3D_v1 copy_3d_v1;
CUDA_KERNEL_NODE_PARAMS kernel_params;
CUDA_KERNEL_NODE_PARAMS_v1 kernel_params_v1;
CUDA_MEMSET_NODE_PARAMS fill_params;
CUDA_HOST_NODE_PARAMS host_params;
CUDA_MEM_ALLOC_NODE_PARAMS take_params;
CUDA_BATCH_MEM_OP_NODE_PARAMS batch_params;
CUDA_EXT_SEM_SIGNAL_NODE_PARAMS signal_params;
CUDA_EXT_SEM_WAIT_NODE_PARAMS wait_params;
CUgraphNodeParams any_params;
CUlaunchConfig launch;
static uint64_t kernel_argument = 1000;
void *kernel_arguments[2] = {&kernel_argument, NULL};
CUDA_RESOURCE_DESC texture_source, surface_source;
CUDA_TEXTURE_DESC texture_look;
CUDA_ARRAY_DESCRIPTOR array_shape = {64, 64, CU_AD_FORMAT_UNSIGNED_INT8, 1};
CUmemAllocationProp device_property;
CUmemAccessDesc device_access;
CUmemLocation device_location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0};
CUmemcpyAttributes copy_attributes = {.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM};
CUDA_MEMCPY3D_BATCH_OP copy_operation;
CUstreamBatchMemOpParams write_operation;

const char passed_code[] = ".version 7.0\n.target sm_52\n.address_size 64\n"
                           ".visible .global .align 4 .u32 hm_word;\n"
                           ".visible .entry hm_spin(.param .u64 ns)\n{\n ret;\n}\n";

/* Says what could not be made; the entries that need it are then called with NULL. */
#define TRY(call)                                                        \
    do {                                                                 \
        CUresult result_ = (call);                                       \
        if (result_ != CUDA_SUCCESS)                                     \
            fprintf(stderr, "not made (%d): %s\n", (int)result_, #call); \
    } while (0)

static void
host_function(void *data)
{
    (void)data;
}

static CUmemoryPool
exportable_pool(void)
{
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR};
    CUmemoryPool pool = NULL;
    cuuint64_t keep = UINT64_MAX;

    props.location = device_location;
    TRY(cuMemPoolCreate(&pool, &props));
    if (pool != NULL)
        TRY(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
    return pool;
}

static void
export_and_wait(int channel)
{
    struct iovec part = {&foreign, sizeof(foreign)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    CUdeviceptr memory = 0, pooled = 0;
    CUmemoryPool pool;
    CUevent event = NULL;
    CUcontext context = NULL;
    CUdevice device = 0;
    int fd = -1;

    TRY(cuInit(0));
    TRY(cuDevicePrimaryCtxRetain(&context, device));
    TRY(cuCtxSetCurrent(context));
    TRY(cuMemAlloc_v2(&memory, BLOCK_BYTES));
    TRY(cuIpcGetMemHandle(&foreign.memory, memory));
    TRY(cuEventCreate(&event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
    TRY(cuIpcGetEventHandle(&foreign.event, event));
    pool = exportable_pool();
    TRY(cuMemAllocFromPoolAsync(&pooled, BLOCK_BYTES, pool, NULL));
    TRY(cuMemPoolExportPointer(&foreign.pointer, pooled));
    TRY(cuMemPoolExportToShareableHandle(&fd, pool, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    TRY(cuCtxSynchronize());
    control.head = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
    if (fd < 0)
        message.msg_control = NULL, message.msg_controllen = 0;
    if (sendmsg(channel, &message, 0) < 0)
        perror("sendmsg");
    pause(); /* until the first process ends */
}

void
passed_start_other(void)
{
    struct iovec part = {&foreign, sizeof(foreign)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    int channel[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, channel) != 0)
        return;
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(channel[0]);
        export_and_wait(channel[1]);
        _exit(0);
    }
    close(channel[1]);
    if (recvmsg(channel[0], &message, MSG_WAITALL) < 0)
        perror("recvmsg");
    if (CMSG_FIRSTHDR(&message) != NULL)
        memcpy(&foreign_pool_fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
}

static void
fill_shapes(void)
{
    copy_2d = (CUDA_MEMCPY2D){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                              .srcDevice = things.device,
                              .srcPitch = 512,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = things.other,
                              .dstPitch = 512,
                              .WidthInBytes = 256,
                              .Height = 4};
    copy_3d = (CUDA_MEMCPY3D){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                              .srcDevice = things.device,
                              .srcPitch = 512,
                              .srcHeight = 4,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = things.other,
                              .dstPitch = 512,
                              .dstHeight = 4,
                              .WidthInBytes = 256,
                              .Height = 4,
                              .Depth = 1};
    copy_peer = (CUDA_MEMCPY3D_PEER){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                     .srcDevice = things.device,
                                     .srcContext = things.context,
                                     .srcPitch = 512,
                                     .srcHeight = 4,
                                     .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                     .dstDevice = things.other,
                                     .dstContext = things.context,
                                     .dstPitch = 512,
                                     .dstHeight = 4,
                                     .WidthInBytes = 256,
                                     .Height = 4,
                                     .Depth = 1};
    copy_2d_v1 = (CUDA_MEMCPY2D_v1){.srcMemoryType = CU_MEMORYTYPE_HOST,
                                    .srcHost = things.host,
                                    .srcPitch = 512,
                                    .dstMemoryType = CU_MEMORYTYPE_HOST,
                                    .dstHost = things.host,
                                    .dstPitch = 512,
                                    .WidthInBytes = 256,
                                    .Height = 4};
    copy_3d_v1 = (CUDA_MEMCPY3D_v1){.srcMemoryType = CU_MEMORYTYPE_HOST,
                                    .srcHost = things.host,
                                    .srcPitch = 512,
                                    .srcHeight = 4,
                                    .dstMemoryType = CU_MEMORYTYPE_HOST,
                                    .dstHost = things.host,
                                    .dstPitch = 512,
                                    .dstHeight = 4,
                                    .WidthInBytes = 256,
                                    .Height = 4,
                                    .Depth = 1};
    kernel_params = (CUDA_KERNEL_NODE_PARAMS){.func = things.function,
                                              .gridDimX = 1,
                                              .gridDimY = 1,
                                              .gridDimZ = 1,
                                              .blockDimX = 1,
                                              .blockDimY = 1,
                                              .blockDimZ = 1,
                                              .kernelParams = kernel_arguments};
    kernel_params_v1 = (CUDA_KERNEL_NODE_PARAMS_v1){.func = things.function,
                                                    .gridDimX = 1,
                                                    .gridDimY = 1,
                                                    .gridDimZ = 1,
                                                    .blockDimX = 1,
                                                    .blockDimY = 1,
                                                    .blockDimZ = 1,
                                                    .kernelParams = kernel_arguments};
    launch = (CUlaunchConfig){.gridDimX = 1,
                              .gridDimY = 1,
                              .gridDimZ = 1,
                              .blockDimX = 1,
                              .blockDimY = 1,
                              .blockDimZ = 1};
    fill_params = (CUDA_MEMSET_NODE_PARAMS){
        .dst = things.device, .elementSize = 1, .width = 256, .height = 1, .value = 7};
    host_params = (CUDA_HOST_NODE_PARAMS){.fn = host_function};
    write_operation.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    write_operation.writeValue.address = things.device;
    write_operation.writeValue.value = 1;
    batch_params = (CUDA_BATCH_MEM_OP_NODE_PARAMS){
        .ctx = things.context, .count = 1, .paramArray = &write_operation};
    take_params = (CUDA_MEM_ALLOC_NODE_PARAMS){
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = device_location},
        .bytesize = BLOCK_BYTES};
    any_params = (CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEMSET};
    any_params.memset.dst = things.device;
    any_params.memset.elementSize = 1;
    any_params.memset.width = 256;
    any_params.memset.height = 1;
    any_params.memset.ctx = things.context;
    texture_source.resType = surface_source.resType = CU_RESOURCE_TYPE_ARRAY;
    texture_source.res.array.hArray = surface_source.res.array.hArray = things.array;
    copy_operation.src.type = copy_operation.dst.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
    copy_operation.src.op.ptr.ptr = things.device;
    copy_operation.dst.op.ptr.ptr = things.other;
    copy_operation.extent = (CUextent3D){.width = 256, .height = 1, .depth = 1};
    copy_operation.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
}

/* Copies and fills that a graph's node holds, a node of each kind, and the graph made ready to launch. */
static void
make_graph(void)
{
    CUgraph child = NULL;

    TRY(cuGraphCreate(&things.graph, 0));
    TRY(cuGraphCreate(&child, 0));
    TRY(cuGraphAddEmptyNode(&things.empty, child, NULL, 0));
    TRY(cuGraphAddChildGraphNode(&things.child_node, things.graph, NULL, 0, child));
    TRY(cuGraphAddEmptyNode(&things.empty, things.graph, NULL, 0));
    TRY(cuGraphAddKernelNode_v2(&things.kernel_node, things.graph, NULL, 0, &kernel_params));
    TRY(cuGraphAddMemcpyNode(&things.copy_node, things.graph, NULL, 0, &copy_3d, things.context));
    TRY(cuGraphAddMemsetNode(&things.fill_node, things.graph, NULL, 0, &fill_params,
                             things.context));
    TRY(cuGraphAddHostNode(&things.host_node, things.graph, NULL, 0, &host_params));
    TRY(cuGraphAddBatchMemOpNode(&things.batch_node, things.graph, NULL, 0, &batch_params));
    TRY(cuGraphAddEventRecordNode(&things.record_node, things.graph, NULL, 0, things.event));
    TRY(cuGraphAddEventWaitNode(&things.wait_event_node, things.graph, NULL, 0, things.event));
    TRY(cuGraphInstantiateWithFlags(&things.exec, things.graph, 0));
    TRY(cuGraphClone(&things.clone, things.graph));
}

static void
make_mapping(void)
{
    CUDA_EXTERNAL_MEMORY_HANDLE_DESC external = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
                                                 .size = BLOCK_BYTES};

    device_property =
        (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                              .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                              .location = device_location};
    device_access =
        (CUmemAccessDesc){.location = device_location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    TRY(cuMemCreate(&things.handle, BLOCK_BYTES, &device_property, 0));
    TRY(cuMemAddressReserve(&things.mapped, BLOCK_BYTES, 0, 0, 0));
    TRY(cuMemMap(things.mapped, BLOCK_BYTES, 0, things.handle, 0));
    TRY(cuMemSetAccess(things.mapped, BLOCK_BYTES, &device_access, 1));
    TRY(cuMemExportToShareableHandle(&external.handle.fd, things.handle,
                                     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    TRY(cuImportExternalMemory(&things.external, &external));
}

static void
make_arrays(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 64,
                                     .Height = 64,
                                     .Format = CU_AD_FORMAT_UNSIGNED_INT8,
                                     .NumChannels = 1,
                                     .Flags = CUDA_ARRAY3D_SURFACE_LDST};
    CUDA_ARRAY_DESCRIPTOR row = {4096, 0, CU_AD_FORMAT_UNSIGNED_INT8, 1};

    TRY(cuArray3DCreate_v2(&things.array, &shape));
    TRY(cuMipmappedArrayCreate(&things.mipmap, &shape, 2));
    TRY(cuArrayCreate_v2(&things.row, &row));
    shape.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
    TRY(cuArray3DCreate_v2(&things.deferred, &shape));
    TRY(cuMipmappedArrayCreate(&things.deferred_mipmap, &shape, 2));
}

void
passed_make(void)
{
    cuuint64_t keep = UINT64_MAX;
    CUmemoryPool standard = NULL;

    things.host = calloc(1, HOST_BYTES);
    things.registered_host = aligned_alloc(4096, HOST_BYTES);
    TRY(cuDevicePrimaryCtxRetain(&things.context, 0));
    TRY(cuCtxSetCurrent(things.context));
    TRY(cuMemAlloc_v2(&things.device, BLOCK_BYTES));
    TRY(cuMemAlloc_v2(&things.other, BLOCK_BYTES));
    TRY(cuMemAllocManaged(&things.managed, BLOCK_BYTES, CU_MEM_ATTACH_GLOBAL));
    TRY(cuMemsetD8_v2(things.managed, 1, BLOCK_BYTES)); /* its pages come to the card */
    things.pool = exportable_pool();
    TRY(cuMemAllocFromPoolAsync(&things.pooled, BLOCK_BYTES, things.pool, NULL));
    TRY(cuDeviceGetDefaultMemPool(&standard, 0));
    if (standard != NULL)
        TRY(cuMemPoolSetAttribute(standard, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
    TRY(cuModuleLoadData(&things.module, passed_code));
    TRY(cuModuleGetFunction(&things.function, things.module, "hm_spin"));
    TRY(cuLibraryLoadData(&things.library, passed_code, NULL, NULL, 0, NULL, NULL, 0));
    TRY(cuLibraryGetKernel(&things.kernel, things.library, "hm_spin"));
    TRY(cuTexRefCreate(&things.texref));
    TRY(cuMemPoolExportToShareableHandle(&own_pool_fd, things.pool,
                                         CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    TRY(cuMemPoolImportFromShareableHandle(&things.foreign_pool, (void *)(intptr_t)foreign_pool_fd,
                                           CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    TRY(cuEventCreate(&things.event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
    make_mapping();
    make_arrays();
    fill_shapes();
    make_graph();
    TRY(cuTexObjectCreate(&things.texture, &texture_source, &texture_look, NULL));
    TRY(cuSurfObjectCreate(&things.surface, &surface_source));
    TRY(cuLaunchKernel(things.function, 1, 1, 1, 1, 1, 1, 0, NULL, kernel_arguments,
                       NULL)); /* loaded and warm */
    TRY(cuCtxSynchronize());
}

/* Quiet: what an entry can't be called without was reported by passed_make. */
void
passed_renew(void)
{
    if (things.stream == NULL)
        cuStreamCreate(&things.stream, CU_STREAM_NON_BLOCKING);
    if (things.stream_v1 == NULL)
        cuStreamCreate(&things.stream_v1, CU_STREAM_NON_BLOCKING);
    if (things.event == NULL)
        cuEventCreate(&things.event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING);
    if (things.event_v1 == NULL)
        cuEventCreate(&things.event_v1, CU_EVENT_DISABLE_TIMING);
    if (things.pinned == NULL)
        cuMemAllocHost_v2(&things.pinned, HOST_BYTES);
    if (things.registered == NULL &&
        cuMemHostRegister_v2(things.registered_host, HOST_BYTES, 0) == CUDA_SUCCESS)
        things.registered = things.registered_host;
    if (things.reserved == 0)
        cuMemAddressReserve(&things.reserved, BLOCK_BYTES, 0, 0, 0);
    if (things.foreign == 0)
        cuIpcOpenMemHandle_v2(&things.foreign, foreign.memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    if (things.texture == 0)
        cuTexObjectCreate(&things.texture, &texture_source, &texture_look, NULL);
    if (things.surface == 0)
        cuSurfObjectCreate(&things.surface, &surface_source);
    if (things.link == NULL)
        cuLinkCreate_v2(0, NULL, NULL, &things.link);
    if (things.user == NULL)
        cuUserObjectCreate(&things.user, NULL, host_function, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
    cuCtxSynchronize();
    memset(scratch, 0, sizeof(scratch));
}
