/*
 * What the driver takes of the card: the rules that the shim's constants stand on, printed as JSON.
 *
 *     cc -O2 -I<headers> rules.c -o rules -ldl -lpthread && ./rules
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <nvml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *cuda, *nvml;
#define CU(name) ((__typeof__(&name))symbol(cuda, #name))
#define V2(name) ((__typeof__(&name))symbol(cuda, #name "_v2"))
#define NV(name) ((__typeof__(&name))symbol(nvml, #name))
static nvmlDevice_t card;
static CUdevice device;

static void *
symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);

    if (found == NULL) {
        fprintf(stderr, "no %s\n", name);
        exit(2);
    }
    return found;
}

static double
now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

/* Footprint of a process on the card, KiB, by NVML; -1: not listed. */
static long
footprint(pid_t pid)
{
    nvmlProcessInfo_t list[256];
    unsigned int count = 256;
    nvmlReturn_t (*get)(nvmlDevice_t, unsigned int *, nvmlProcessInfo_t *) =
        (nvmlReturn_t (*)(nvmlDevice_t, unsigned int *, nvmlProcessInfo_t *))symbol(
            nvml, "nvmlDeviceGetComputeRunningProcesses_v3");

    if (get(card, &count, list) != NVML_SUCCESS)
        return -1;
    for (unsigned int i = 0; i < count; i++)
        if (list[i].pid == (unsigned int)pid)
            return (long)(list[i].usedGpuMemory >> 10);
    return -1;
}

static long
mine(void)
{
    return footprint(getpid());
}

static void
alloc_rule(void)
{
    static const size_t sizes[] = {512,     4096,    65536,   262144,  524288,  786432,
                                   1048064, 1048576, 1049088, 1572864, 2097152, 2097664,
                                   3145728, 4194304, 5242880, 33554432};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        CUdeviceptr pointers[64];
        long before = mine();

        for (int n = 0; n < 64; n++)
            V2(cuMemAlloc)(&pointers[n], sizes[i]);
        printf("{\"rule\": \"linear\", \"bytes\": %zu, \"count\": 64, \"kib\": %ld", sizes[i],
               mine() - before);
        for (int n = 0; n < 64; n++)
            V2(cuMemFree)(pointers[n]);
        printf(", \"after_free_kib\": %ld}\n", mine() - before);
    }
}

/* KiB of the whole card that are in use: managed memory is billed to no process. */
static long
card_kib(void)
{
    size_t free_bytes, total;

    V2(cuMemGetInfo)(&free_bytes, &total);
    return (long)((total - free_bytes) >> 10);
}

/* What managed memory takes once it is touched, and what stays after it was freed. */
static void
managed_rule(void)
{
    static const size_t sizes[] = {4096,    65536,    1048576,  2097152,  3145728,   4194304,
                                   8388608, 16777216, 33554432, 67108864, 134217728, 268435456};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        CUdeviceptr pointers[16];
        long before = card_kib(), one = 0;

        for (int n = 0; n < 16; n++) {
            CU(cuMemAllocManaged)(&pointers[n], sizes[i], CU_MEM_ATTACH_GLOBAL);
            ((__typeof__(&cuMemsetD8))symbol(cuda, "cuMemsetD8_v2"))(pointers[n], 1, sizes[i]);
            CU(cuCtxSynchronize)();
            if (n == 0)
                one = card_kib() - before;
        }
        printf(
            "{\"rule\": \"managed\", \"bytes\": %zu, \"count\": 16, \"kib\": %ld, \"first_kib\": "
            "%ld, \"offset_in_block\": %lu, \"step\": %ld",
            sizes[i], card_kib() - before, one, (unsigned long)(pointers[0] % 2097152),
            (long)(pointers[1] - pointers[0]));
        for (int n = 0; n < 16; n++)
            V2(cuMemFree)(pointers[n]);
        printf(", \"after_free_kib\": %ld}\n", card_kib() - before);
    }
}

static CUdeviceptr
touch_managed(size_t bytes)
{
    CUdeviceptr pointer = 0;

    CU(cuMemAllocManaged)(&pointer, bytes, CU_MEM_ATTACH_GLOBAL);
    ((__typeof__(&cuMemsetD8))symbol(cuda, "cuMemsetD8_v2"))(pointer, 1, bytes);
    CU(cuCtxSynchronize)();
    return pointer;
}

/* Bytes that cuMemAlloc gives until it refuses 2 MiB, in KiB; they are freed again. */
static long
fill_card_kib(void)
{
    static CUdeviceptr pieces[65536];
    int count = 0;
    size_t sum = 0;

    for (size_t size = 1 << 30; size >= 2097152; size /= 8)
        while (count < 65536 && V2(cuMemAlloc)(&pieces[count], size) == CUDA_SUCCESS) {
            count++;
            sum += size;
        }
    while (count > 0)
        V2(cuMemFree)(pieces[--count]);
    return (long)(sum >> 10);
}

/* The driver takes memory for managed allocations in batches: whose are they, and does it give them to others? */
static void
managed_batches(const char *self)
{
    long before = card_kib(), room = fill_card_kib(), one, two;
    CUdeviceptr pointer = touch_managed(4096);
    char command[4096], line[64];
    FILE *other;

    one = card_kib() - before;
    snprintf(command, sizeof(command), "%s managed-child", self);
    other = popen(command, "r");
    two = other != NULL && fgets(line, sizeof(line), other) != NULL ? atol(line) : -1;
    printf("{\"rule\": \"managed batch\", \"this_process_kib\": %ld, \"another_kib\": %ld, "
           "\"room_without_kib\": %ld, \"used_with_kib\": ",
           one, two, room);
    if (other != NULL)
        pclose(other);
    before = card_kib();
    room = fill_card_kib();
    V2(cuMemFree)(pointer);
    printf("%ld, \"room_with_kib\": %ld}\n", before, room);
}

/* Prints by how much the card's use grew when this process touched its first managed memory. */
static void
managed_child(void)
{
    long before = card_kib();

    touch_managed(4096);
    printf("%ld\n", card_kib() - before);
}

static void
pool_rule(void)
{
    static const size_t sizes[] = {512,       1048576,   33554432,  40000000,
                                   104857600, 209715200, 1073741824};
    CUmemoryPool pool;

    CU(cuDeviceGetMemPool)(&pool, device);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        CUdeviceptr pointer, second;
        cuuint64_t reserved = 0, two = 0;
        long before = mine(), one;

        CU(cuMemAllocAsync)(&pointer, sizes[i], NULL);
        CU(cuMemPoolGetAttribute)(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved);
        one = mine() - before;
        CU(cuMemAllocAsync)(&second, sizes[i], NULL);
        CU(cuMemPoolGetAttribute)(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &two);
        printf("{\"rule\": \"pool\", \"bytes\": %zu, \"reserved\": %lu, \"kib\": %ld, "
               "\"reserved_two\": %lu, "
               "\"kib_two\": %ld",
               sizes[i], (unsigned long)reserved, one, (unsigned long)two, mine() - before);
        CU(cuMemFreeAsync)(pointer, NULL);
        CU(cuMemFreeAsync)(second, NULL);
        CU(cuCtxSynchronize)();
        CU(cuMemPoolGetAttribute)(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved);
        printf(", \"after_sync_reserved\": %lu, \"after_sync_kib\": %ld}\n",
               (unsigned long)reserved, mine() - before);
    }
}

static void
array_rule(void)
{
    static const unsigned sides[] = {16, 100, 512, 1000, 1024, 4096};

    for (size_t i = 0; i < sizeof(sides) / sizeof(sides[0]); i++) {
        CUDA_ARRAY3D_DESCRIPTOR d = {
            .Width = sides[i], .Height = sides[i], .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4};
        CUDA_ARRAY_MEMORY_REQUIREMENTS need = {0};
        CUarray array, twin;
        long before = mine();
        CUresult twin_result, need_result;

        V2(cuArray3DCreate)(&array, &d);
        d.Flags = CUDA_ARRAY3D_DEFERRED_MAPPING;
        twin_result = V2(cuArray3DCreate)(&twin, &d);
        need_result = CU(cuArrayGetMemoryRequirements)(&need, twin, device);
        printf("{\"rule\": \"array\", \"side\": %u, \"float4_bytes\": %u, \"kib\": %ld, \"twin\": "
               "%d, \"requirements\": %d, "
               "\"required\": %zu}\n",
               sides[i], sides[i] * sides[i] * 16, mine() - before, twin_result, need_result,
               need.size);
        CU(cuArrayDestroy)(array);
        if (twin_result == CUDA_SUCCESS)
            CU(cuArrayDestroy)(twin);
    }
}

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
        perror("sendmsg");
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
        return -1;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    return fd;
}

static void
open_card(void)
{
    CUcontext context;

    CU(cuInit)(0);
    CU(cuDeviceGet)(&device, 0);
    NV(nvmlInit_v2)();
    NV(nvmlDeviceGetHandleByIndex_v2)(0, &card);
    CU(cuDevicePrimaryCtxRetain)(&context, device);
    CU(cuCtxSetCurrent)(context);
}

/* Whom NVML bills for 256 MiB that one process made and another mapped. The importer is forked before CUDA starts. */
static void
sharing_rule(void)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemGenericAllocationHandle handle;
    size_t bytes = 256 << 20;
    int channel[2];
    char step;
    pid_t importer;

    socketpair(AF_UNIX, SOCK_STREAM, 0, channel);
    importer = fork();
    if (importer == 0) {
        pid_t parent = getppid();
        CUdeviceptr address;
        long before;
        int fd;

        open_card();
        before = mine();
        fd = receive_fd(channel[1]);
        printf("{\"rule\": \"import\", \"when\": \"exported\", \"importer_kib\": %ld, "
               "\"exporter_kib\": %ld}\n",
               mine() - before, footprint(parent));
        CU(cuMemImportFromShareableHandle)(&handle, (void *)(uintptr_t)fd,
                                           CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
        printf("{\"rule\": \"import\", \"when\": \"imported\", \"importer_kib\": %ld}\n",
               mine() - before);
        CU(cuMemAddressReserve)(&address, bytes, 0, 0, 0);
        CU(cuMemMap)(address, bytes, 0, handle, 0);
        printf("{\"rule\": \"import\", \"when\": \"mapped\", \"importer_kib\": %ld, "
               "\"exporter_kib\": %ld}\n",
               mine() - before, footprint(parent));
        if (write(channel[1], "m", 1) != 1 || read(channel[1], &step, 1) != 1)
            _exit(1);
        printf("{\"rule\": \"import\", \"when\": \"exporter released\", \"importer_kib\": %ld, "
               "\"exporter_kib\": %ld}\n",
               mine() - before, footprint(parent));
        fflush(stdout);
        _exit(0);
    }
    open_card();
    printf("{\"rule\": \"import\", \"when\": \"exporter before\", \"exporter_kib\": %ld}\n",
           mine());
    if (CU(cuMemCreate)(&handle, bytes, &prop, 0) == CUDA_SUCCESS) {
        int fd = -1;

        CU(cuMemExportToShareableHandle)(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
        fflush(stdout);
        send_fd(channel[0], fd);
        close(fd);
        if (read(channel[0], &step, 1) != 1)
            return;
        CU(cuMemRelease)(handle);
        if (write(channel[0], "r", 1) != 1)
            return;
    }
    waitpid(importer, NULL, 0);
}

static void
context_costs(void)
{
    double start = now_ms(), middle;
    CUcontext second;
    long before;

    NV(nvmlInit_v2)();
    middle = now_ms();
    NV(nvmlShutdown)();
    NV(nvmlInit_v2)();
    printf("{\"rule\": \"nvml\", \"init_ms\": %.2f, \"again_ms\": %.2f}\n", middle - start,
           now_ms() - middle);
    before = mine();
    ((CUresult (*)(CUcontext *, unsigned, CUdevice))symbol(cuda, "cuCtxCreate_v2"))(&second, 0,
                                                                                    device);
    printf("{\"rule\": \"context\", \"first_kib\": %ld, \"second_kib\": %ld", before,
           mine() - before);
    V2(cuCtxDestroy)(second);
    printf(", \"second_destroyed_kib\": %ld", mine() - before);
    V2(cuDevicePrimaryCtxRelease)(device);
    printf(", \"all_gone_kib\": %ld}\n", mine());
}

int
main(int argc, char **argv)
{
    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (cuda == NULL || nvml == NULL) {
        fprintf(stderr, "no driver\n");
        return 2;
    }
    if (argc > 1 && strcmp(argv[1], "managed-child") == 0) {
        open_card();
        managed_child();
        return 0;
    }
    sharing_rule();
    managed_batches(argv[0]);
    alloc_rule();
    managed_rule();
    pool_rule();
    array_rule();
    context_costs();
    return 0;
}
