/*
 * Physical memory between processes. vmm_share STEP...: the first letter of a step says who does it (e: the exporter,
 * i: the importer), the rest what: make, map, export, import, unmap, release, fill, die. This process only tells the
 * two what to do. By what free memory fell is the importer's view, or the exporter's once the importer is dead.
 */
#include "steps.h"

#include <sys/socket.h>
#include <sys/wait.h>

#define BYTES (512 * MIB)

static CUmemGenericAllocationHandle handle;
static CUdeviceptr address;

static void
send_fd(int channel, int fd)
{
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);

    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &fd, sizeof(int));
    if (sendmsg(channel, &message, 0) < 0)
        exit(2);
}

static int
receive_fd(int channel)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    int fd;

    if (recvmsg(channel, &message, 0) <= 0)
        exit(2);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    return fd;
}

static void
make(void)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};

    CHECK(cuMemCreate(&handle, BYTES, &prop, 0));
}

static void
map(void)
{
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

    CHECK(cuMemAddressReserve(&address, BYTES, 0, 0, 0));
    CHECK(cuMemMap(address, BYTES, 0, handle, 0));
    CHECK(cuMemSetAccess(address, BYTES, &access, 1));
}

static void
export(int peer)
{
    int fd;

    CHECK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    send_fd(peer, fd);
    close(fd);
}

static void
import(int peer)
{
    int fd = receive_fd(peer);

    CHECK(cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)fd,
                                         CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
}

/* Up to the cap and back, so that the shim looks at what NVML says. */
static void
fill(void)
{
    CUdeviceptr blocks[4096];
    unsigned int count = 0;

    while (count < 4096 && cuMemAlloc(&blocks[count], 64 * MIB) == CUDA_SUCCESS)
        count++;
    while (count > 0)
        CHECK(cuMemFree(blocks[--count]));
}

static void
act(const char *step, int peer)
{
    if (strcmp(step, "make") == 0)
        make();
    else if (strcmp(step, "map") == 0)
        map();
    else if (strcmp(step, "export") == 0)
        export(peer);
    else if (strcmp(step, "import") == 0)
        import(peer);
    else if (strcmp(step, "unmap") == 0)
        CHECK(cuMemUnmap(address, BYTES));
    else if (strcmp(step, "release") == 0)
        CHECK(cuMemRelease(handle));
    else if (strcmp(step, "fill") == 0)
        fill();
    else if (strcmp(step, "die") == 0)
        _exit(0);
    else if (strcmp(step, "base") == 0)
        free_at_start = free_bytes();
}

/* Steps come over `orders`; after each goes back by how many KiB the free memory fell. */
static _Noreturn void
worker(int orders, int peer)
{
    char step[32];

    start();
    while (read(orders, step, sizeof(step)) == (ssize_t)sizeof(step)) {
        long fell;

        act(step, peer);
        fell = ((long)free_at_start - (long)free_bytes()) / 1024;
        if (write(orders, &fell, sizeof(fell)) != (ssize_t)sizeof(fell))
            break;
    }
    _exit(0);
}

struct role {
    pid_t pid;
    int orders;
};

static struct role
begin(int peer, int other_peer, int other_orders)
{
    struct role role;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0)
        exit(2);
    role.pid = fork();
    role.orders = pair[0];
    if (role.pid == 0) {
        close(pair[0]);
        close(other_peer);
        if (other_orders >= 0)
            close(other_orders);
        worker(pair[1], peer);
    }
    close(pair[1]);
    return role;
}

static long
order(struct role *role, const char *step)
{
    char message[32] = "";
    long fell = 0;

    strncpy(message, step, sizeof(message) - 1);
    if (write(role->orders, message, sizeof(message)) != (ssize_t)sizeof(message))
        exit(2);
    if (strcmp(step, "die") == 0) {
        waitpid(role->pid, NULL, 0);
        role->pid = 0;
    } else if (read(role->orders, &fell, sizeof(fell)) != (ssize_t)sizeof(fell)) {
        exit(1);
    }
    return fell;
}

int
main(int count, char **arguments)
{
    struct role exporter, importer;
    char line[16];
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return 2;
    exporter = begin(pair[0], pair[1], -1);
    importer = begin(pair[1], pair[0], exporter.orders);
    close(pair[0]);
    close(pair[1]);
    order(&exporter, "ready");
    order(&importer, "base");
    order(&exporter, "base");
    for (int i = 1; i < count; i++) {
        order(arguments[i][0] == 'e' ? &exporter : &importer, arguments[i] + 1);
        printf("%s %ld\n", arguments[i], order(importer.pid != 0 ? &importer : &exporter, "look"));
        fflush(stdout);
        if (fgets(line, sizeof(line), stdin) == NULL)
            continue;
    }
    return 0;
}
