/* cuIpcGetMemHandle and cuIpcOpenMemHandle: a child reads and changes its parent's memory. */
#include "sockets.h"

#include "kernels.h"

enum { WORDS = 1 << 20 };

static void
opener(int socket)
{
    CUipcMemHandle handle;
    CUdevice device;
    CUdeviceptr ptr;
    uint64_t seen;

    receive_bytes(socket, &handle, sizeof handle);
    hm_start(&device);
    CHECK(cu.cuIpcOpenMemHandle(&ptr, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    seen = hm_device_hash(ptr, WORDS);
    CHECK(cu.cuMemsetD32(ptr, 0xbeefu, WORDS / 4));
    CHECK(cu.cuCtxSynchronize());
    CHECK(cu.cuIpcCloseMemHandle(ptr));
    send_bytes(socket, &seen, sizeof seen);
}

static void
owner(int socket, pid_t child)
{
    struct hm_kernels kernels;
    CUipcMemHandle handle;
    CUdevice device;
    CUdeviceptr ptr;
    uint64_t before, seen;

    hm_start(&device);
    hm_kernels_load(&kernels);
    CHECK(cu.cuMemAlloc(&ptr, WORDS * 4ull));
    CHECK(hm_launch_words(kernels.fill, NULL, ptr, 0x10cu, WORDS));
    CHECK(cu.cuCtxSynchronize());
    before = hm_device_hash(ptr, WORDS);
    CHECK(cu.cuIpcGetMemHandle(&handle, ptr));
    send_bytes(socket, &handle, sizeof handle);
    receive_bytes(socket, &seen, sizeof seen);
    wait_for(child);
    printf("RESULT ipc_legacy owned=%016llx opened=%016llx changed=%016llx\n",
           (unsigned long long)before, (unsigned long long)seen,
           (unsigned long long)hm_device_hash(ptr, WORDS));
    CHECK(cu.cuMemFree(ptr));
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
        opener(sockets[1]);
        return 0;
    }
    owner(sockets[0], child);
    return 0;
}
