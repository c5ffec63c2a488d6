/*
 * Fills the card by one kind of allocation until it is refused: fill KIND LIMIT_MIB HOLD_MS.
 *
 * KIND: malloc, pitch, async, vmm, managed, array. It asks in pieces of 256, 32 and 2 MiB, each
 * until it is refused or LIMIT_MIB is reached (so that a cap that does not hold cannot take the
 * whole card), then runs kernels that it had not loaded while full, gives one piece back, runs them
 * again, gives everything back and allocates once more. The last line is "HMRESULT " and JSON;
 * phases are CLOCK_MONOTONIC in ns, for whoever samples the footprint from outside.
 */
#include "driver.h"

#include "kernels.h"

#define MIB (1024ull * 1024)
#define PIECES 8192

struct piece {
    CUdeviceptr ptr;
    CUarray array;
    CUmemGenericAllocationHandle handle;
    size_t bytes;
};

static struct piece pieces[PIECES];
static int piece_count;
static CUstream stream;
static CUdevice device;
static CUdeviceptr range; /* address space for KIND vmm */
static size_t range_bytes, range_used;

static CUresult
take_vmm(struct piece *piece, size_t bytes)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    CUmemAccessDesc access = {.location = prop.location,
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUresult code = cu.cuMemCreate(&piece->handle, bytes, &prop, 0);

    if (code != CUDA_SUCCESS)
        return code;
    piece->ptr = range + range_used;
    CHECK(cu.cuMemMap(piece->ptr, bytes, 0, piece->handle, 0));
    CHECK(cu.cuMemSetAccess(piece->ptr, bytes, &access, 1));
    range_used += bytes;
    return CUDA_SUCCESS;
}

static CUresult
take_array(struct piece *piece, size_t bytes)
{
    CUDA_ARRAY_DESCRIPTOR shape = {.Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};

    shape.Width = bytes >= 256 * MIB ? 8192 : bytes >= 32 * MIB ? 4096 : 1024;
    shape.Height = bytes / 4 / shape.Width;
    return cu.cuArrayCreate(&piece->array, &shape);
}

static CUresult
take_managed(struct piece *piece, size_t bytes)
{
    CUresult code = cu.cuMemAllocManaged(&piece->ptr, bytes, CU_MEM_ATTACH_GLOBAL);

    if (code != CUDA_SUCCESS)
        return code;
    code = cu.cuMemsetD32(piece->ptr, 1, bytes / 4); /* only touching it puts it on the card */
    if (code == CUDA_SUCCESS)
        code = cu.cuCtxSynchronize();
    if (code != CUDA_SUCCESS)
        cu.cuMemFree(piece->ptr);
    return code;
}

static CUresult
take(const char *kind, struct piece *piece, size_t bytes)
{
    size_t pitch;

    piece->bytes = bytes;
    if (strcmp(kind, "malloc") == 0)
        return cu.cuMemAlloc(&piece->ptr, bytes);
    if (strcmp(kind, "pitch") == 0)
        return cu.cuMemAllocPitch(&piece->ptr, &pitch, 4096, bytes / 4096, 4);
    if (strcmp(kind, "async") == 0)
        return cu.cuMemAllocAsync(&piece->ptr, bytes, stream);
    if (strcmp(kind, "vmm") == 0)
        return take_vmm(piece, bytes);
    if (strcmp(kind, "managed") == 0)
        return take_managed(piece, bytes);
    if (strcmp(kind, "array") == 0)
        return take_array(piece, bytes);
    hm_die("no such kind: %s", kind);
}

static void
give_back(const char *kind)
{
    struct piece *piece = &pieces[--piece_count];

    if (strcmp(kind, "async") == 0) {
        CHECK(cu.cuMemFreeAsync(piece->ptr, stream));
        CHECK(cu.cuStreamSynchronize(stream));
    } else if (strcmp(kind, "vmm") == 0) {
        CHECK(cu.cuMemUnmap(piece->ptr, piece->bytes));
        CHECK(cu.cuMemRelease(piece->handle));
        range_used -= piece->bytes;
    } else if (strcmp(kind, "array") == 0) {
        CHECK(cu.cuArrayDestroy(piece->array));
    } else {
        CHECK(cu.cuMemFree(piece->ptr));
    }
}

/* Fills with pieces of one size; returns the code that ended it, CUDA_SUCCESS at the limit. */
static CUresult
fill(const char *kind, size_t bytes, size_t limit, size_t *obtained)
{
    CUresult code;

    while (*obtained + bytes <= limit && piece_count < PIECES) {
        struct piece *piece = &pieces[piece_count];

        code = take(kind, piece, bytes);
        if (code != CUDA_SUCCESS)
            return code;
        piece_count++;
        *obtained += bytes;
    }
    return CUDA_SUCCESS;
}

static int steps;

static void
print_step(const char *name, const char *phase, CUresult code)
{
    printf("%s{\"name\": \"%s\", \"phase\": \"%s\", \"ok\": %s, \"error\": %s%s%s}",
           steps++ == 0 ? "" : ", ", name, phase, code == CUDA_SUCCESS ? "true" : "false",
           code == CUDA_SUCCESS ? "null" : "\"", code == CUDA_SUCCESS ? "" : hm_error(code),
           code == CUDA_SUCCESS ? "" : "\"");
}

/* Loads a module and launches from it; `small` are words that are ours already. */
static void
run_kernels(const char *phase, CUdeviceptr small)
{
    struct hm_kernels kernels;
    CUresult code = cu.cuModuleLoadData(&kernels.module, hm_ptx);

    print_step("module load", phase, code);
    if (code != CUDA_SUCCESS)
        return;
    CHECK(cu.cuModuleGetFunction(&kernels.fill, kernels.module, "hm_fill"));
    CHECK(cu.cuModuleGetFunction(&kernels.spin, kernels.module, "hm_spin"));
    print_step("fill", phase, hm_launch_words(kernels.fill, stream, small, 3, 1024));
    print_step("spin", phase, hm_launch_spin(kernels.spin, stream, 1000000));
    print_step("memset", phase, cu.cuMemsetD32Async(small, 7, 1024, stream));
    print_step("sync", phase, cu.cuStreamSynchronize(stream));
}

int
main(int argc, char **argv)
{
    static const size_t sizes[] = {256 * MIB, 32 * MIB, 2 * MIB};
    const char *kind = argc > 1 ? argv[1] : "malloc";
    size_t limit = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1024) * MIB, obtained = 0, given = 0;
    long hold_ms = argc > 3 ? atol(argv[3]) : 300;
    uint64_t context_ns, filled_ns, room_ns, freed_ns, end_ns;
    CUresult refused = CUDA_SUCCESS, again;
    struct piece piece = {0};
    CUdeviceptr small;

    hm_start(&device);
    CHECK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CHECK(cu.cuMemAlloc(&small, 4096));
    range_bytes = limit + 512 * MIB;
    if (strcmp(kind, "vmm") == 0)
        CHECK(cu.cuMemAddressReserve(&range, range_bytes, 0, 0, 0));
    context_ns = hm_now_ns();
    hm_sleep_ms(hold_ms);

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        CUresult code = fill(kind, sizes[i], limit, &obtained);

        if (code != CUDA_SUCCESS)
            refused = code;
    }
    filled_ns = hm_now_ns();
    hm_sleep_ms(hold_ms);

    printf("HMRESULT {\"kernels\": [");
    run_kernels("full", small);
    while (piece_count > 0 && given < 256 * MIB) {
        given += pieces[piece_count - 1].bytes;
        give_back(kind);
    }
    room_ns = hm_now_ns();
    run_kernels("room", small);
    hm_sleep_ms(hold_ms);
    while (piece_count > 0)
        give_back(kind);
    freed_ns = hm_now_ns();
    again = take(kind, &piece, 256 * MIB);
    hm_sleep_ms(hold_ms);
    end_ns = hm_now_ns();

    printf("], \"obtained_bytes\": %zu, \"limit_reached\": %s, ", obtained,
           refused == CUDA_SUCCESS ? "true" : "false");
    printf("\"oom\": {\"type\": \"%s\", \"message\": \"%d\"}, ", hm_error(refused), (int)refused);
    printf("\"again\": {\"ok\": %s, \"error\": \"%s\"}, ", again == CUDA_SUCCESS ? "true" : "false",
           hm_error(again));
    printf("\"phases_ns\": {\"context\": %llu, \"filled\": %llu, \"room\": %llu, \"freed\": %llu, "
           "\"end\": %llu}}\n",
           (unsigned long long)context_ns, (unsigned long long)filled_ns,
           (unsigned long long)room_ns, (unsigned long long)freed_ns, (unsigned long long)end_ns);
    return 0;
}
