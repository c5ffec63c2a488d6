/*
 * Physical memory between processes. vmm_share STEP...: the first letter of a step says who does it (e: the exporter,
 * i: the importer), the rest what: make, map, export, import, unmap, release, die. After each step its name and what
 * the free memory fell by is printed by whoever did it; this process only tells the two what to do.
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
    else
        _exit(0);
}

/* Steps come over `orders`, an answer goes back after each. */
static _Noreturn void
worker(int orders, int peer)
{
    char step[32];

    start();
    while (read(orders, step, sizeof(step)) == (ssize_t)sizeof(step)) {
        act(step, peer);
        if (write(orders, "", 1) != 1)
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

static void
order(const struct role *role, const char *step)
{
    char message[32] = "", reply;

    strncpy(message, step, sizeof(message) - 1);
    if (write(role->orders, message, sizeof(message)) != (ssize_t)sizeof(message))
        exit(2);
    if (strcmp(step, "die") == 0)
        waitpid(role->pid, NULL, 0);
    else if (read(role->orders, &reply, 1) != 1)
        exit(1);
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
    printf("pids %d %d\n", (int)exporter.pid, (int)importer.pid);
    for (int i = 1; i < count; i++) {
        order(arguments[i][0] == 'e' ? &exporter : &importer, arguments[i] + 1);
        printf("%s 0\n", arguments[i]);
        fflush(stdout);
        if (fgets(line, sizeof(line), stdin) == NULL)
            continue;
    }
    return 0;
}
