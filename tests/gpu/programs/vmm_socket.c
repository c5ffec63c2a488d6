/*
 * cuMemCreate memory exported as a file descriptor over a socket, mapped by another process, which
 * changes it.
 */
#include "sockets.h"

#include "kernels.h"

enum { WORDS = 4 << 20 };

static const CUmemAllocationHandleType type = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

static CUdeviceptr
map(CUmemGenericAllocationHandle handle, CUdevice device)
{
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUdeviceptr ptr;

    CHECK(cu.cuMemAddressReserve(&ptr, WORDS * 4ull, 0, 0, 0));
    CHECK(cu.cuMemMap(ptr, WORDS * 4ull, 0, handle, 0));
    CHECK(cu.cuMemSetAccess(ptr, WORDS * 4ull, &access, 1));
    return ptr;
}

static void
unmap(CUdeviceptr ptr)
{
    CHECK(cu.cuMemUnmap(ptr, WORDS * 4ull));
    CHECK(cu.cuMemAddressFree(ptr, WORDS * 4ull));
}

static void
importer(int socket)
{
    CUmemGenericAllocationHandle handle;
    CUdevice device;
    CUdeviceptr ptr;
    uint64_t seen;
    int fd = receive_fd(socket);

    hm_start(&device);
    CHECK(cu.cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, type));
    close(fd);
    ptr = map(handle, device);
    CHECK(cu.cuMemRelease(handle)); /* the mapping keeps it */
    seen = hm_device_hash(ptr, WORDS);
    CHECK(cu.cuMemsetD32(ptr, 0xfeedu, WORDS / 2));
    CHECK(cu.cuCtxSynchronize());
    unmap(ptr);
    send_bytes(socket, &seen, sizeof seen);
}

static void
exporter(int socket, pid_t child)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = type,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemGenericAllocationHandle handle, again;
    struct hm_kernels kernels;
    CUdevice device;
    CUdeviceptr ptr;
    size_t granularity;
    uint64_t before, seen;
    int fd = -1;

    hm_start(&device);
    prop.location.id = device;
    CHECK(cu.cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    CHECK(cu.cuMemCreate(&handle, WORDS * 4ull, &prop, 0));
    ptr = map(handle, device);
    CHECK(cu.cuMemRetainAllocationHandle(&again, (void *)ptr));
    CHECK(cu.cuMemRelease(again));
    hm_kernels_load(&kernels);
    CHECK(hm_launch_words(kernels.fill, NULL, ptr, 0x600du, WORDS));
    CHECK(cu.cuCtxSynchronize());
    before = hm_device_hash(ptr, WORDS);
    CHECK(cu.cuMemExportToShareableHandle(&fd, handle, type, 0));
    send_fd(socket, fd);
    close(fd);
    receive_bytes(socket, &seen, sizeof seen);
    wait_for(child);
    printf("RESULT vmm_socket granularity=%zu exported=%016llx imported=%016llx changed=%016llx\n",
           granularity, (unsigned long long)before, (unsigned long long)seen,
           (unsigned long long)hm_device_hash(ptr, WORDS));
    unmap(ptr);
    CHECK(cu.cuMemRelease(handle));
}

int
main(void)
{
    int sockets[2];
    pid_t child;

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0)
        hm_die("no socket pair");
    child = fork();
    close(sockets[child == 0 ? 0 : 1]); /* so that each notices when the other is gone */
    if (child == 0) {
        importer(sockets[1]);
        return 0;
    }
    exporter(sockets[0], child);
    return 0;
}
