#include "graphmem.h"

#include "log.h"
#include "sorted.h"

#include <pthread.h>
#include <stdlib.h>

struct hm_graph_exec {
    uint64_t bytes[HM_DEVICES]; /* that it can have backed at most */
    uint32_t devices;           /* a bit for each device it allocates on */
    uint32_t launched;          /* on these it was; under the mutex */
    bool keeps;                 /* some allocation outlives a launch */
};

/*
 * A device's pool. Graphs launched in one stream follow each other, and the driver backs them with the same memory, so
 * what they need together is that of the largest, besides what outlives a launch. In several streams it is the sum.
 */
struct pool {
    struct hm_charge charge;
    uint64_t bytes;  /* held, as last read */
    uint64_t ticket; /* of that reading */
    uint64_t sum;    /* of all graphs launched and living */
    uint64_t kept; /* of those that keep allocations, gone ones included until a trim shows less */
    uint64_t peak; /* of the largest of the others */
    uint64_t stream; /* 0: none yet */
    bool mixed;      /* launched in several streams */
};

uint32_t hm_graph_living;

static struct pool pools[HM_DEVICES];
static uint32_t used; /* a bit for each device that graphs ever allocated on; atomic */
static uint64_t tickets;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* over pools, never over a driver call */

static bool note_node(CUgraphNode node, struct hm_sorted *allocs, struct hm_sorted *frees);

static bool
walk(CUgraph graph, struct hm_sorted *allocs, struct hm_sorted *frees)
{
    size_t count = 0;
    CUgraphNode *nodes;
    bool walked = true;

    if (REAL(cuGraphGetNodes(graph, NULL, &count)) != CUDA_SUCCESS || count == 0)
        return true; /* not ours to judge: the instantiation will */
    nodes = malloc(count * sizeof(*nodes));
    if (nodes == NULL || REAL(cuGraphGetNodes(graph, nodes, &count)) != CUDA_SUCCESS)
        count = 0;
    for (size_t i = 0; walked && i < count; i++)
        walked = note_node(nodes[i], allocs, frees);
    walked = walked && nodes != NULL;
    free(nodes);
    return walked;
}

static bool
note_alloc(CUgraphNode node, struct hm_sorted *allocs)
{
    CUDA_MEM_ALLOC_NODE_PARAMS params;
    int device;

    if (REAL(cuGraphMemAllocNodeGetParams(node, &params)) != CUDA_SUCCESS ||
        params.poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return true;
    device = hm_device_index(params.poolProps.location.id);
    return device < 0 ||
           hm_sorted_insert(allocs, &(struct hm_entry){.key = params.dptr,
                                                       .size = params.bytesize,
                                                       .owner = (void *)(uintptr_t)device});
}

/* False: no host memory. */
static bool
note_node(CUgraphNode node, struct hm_sorted *allocs, struct hm_sorted *frees)
{
    CUgraphNodeType type;
    CUdeviceptr freed;
    CUgraph child;

    if (REAL(cuGraphNodeGetType(node, &type)) != CUDA_SUCCESS)
        return true;
    if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        return note_alloc(node, allocs);
    if (type == CU_GRAPH_NODE_TYPE_MEM_FREE &&
        REAL(cuGraphMemFreeNodeGetParams(node, &freed)) == CUDA_SUCCESS)
        return hm_sorted_insert(frees, &(struct hm_entry){.key = freed});
    if (type == CU_GRAPH_NODE_TYPE_GRAPH &&
        REAL(cuGraphChildGraphNodeGetGraph(node, &child)) == CUDA_SUCCESS)
        return walk(child, allocs, frees);
    return true;
}

/* Bytes of the pieces that the allocations of a device touch; sorted by address, they may overlap. */
static uint64_t
pieces(const struct hm_sorted *allocs, int device)
{
    uint64_t bytes = 0, end = 0;

    for (size_t i = 0; i < allocs->count; i++) {
        const struct hm_entry *alloc = &allocs->entry[i];
        uint64_t from = alloc->key / HM_GRAPH_PIECE_BYTES, to;

        if ((int)(uintptr_t)alloc->owner != device || alloc->size > UINT64_MAX - alloc->key)
            continue;
        to = (alloc->key + alloc->size + HM_GRAPH_PIECE_BYTES - 1) / HM_GRAPH_PIECE_BYTES;
        from = from > end ? from : end;
        bytes += to > from ? (to - from) * HM_GRAPH_PIECE_BYTES : 0;
        end = to > end ? to : end;
    }
    return bytes;
}

struct hm_graph_exec *
hm_graph_measure(CUgraph graph)
{
    struct hm_sorted allocs = {0}, frees = {0};
    struct hm_graph_exec *exec = NULL;

    if (!hm_active())
        return NULL;
    if (!walk(graph, &allocs, &frees) ||
        (allocs.count > 0 && (exec = calloc(1, sizeof(*exec))) == NULL))
        hm_log_once(
            "no host memory to measure a graph: what it allocates is seen through NVML only");
    for (size_t i = 0; exec != NULL && i < allocs.count; i++) {
        exec->devices |= 1u << (uintptr_t)allocs.entry[i].owner;
        exec->keeps = exec->keeps || hm_sorted_find(&frees, allocs.entry[i].key) == NULL;
    }
    for (int i = 0; exec != NULL && i < HM_DEVICES; i++)
        exec->bytes[i] = exec->devices >> i & 1 ? pieces(&allocs, i) : 0;
    free(allocs.entry);
    free(frees.entry);
    return exec;
}

struct hm_graph_exec *
hm_graph_find(CUgraphExec handle)
{
    struct hm_object object;

    if (!hm_active() || !hm_object_look(HM_GRAPH_EXEC, (uintptr_t)handle, &object))
        return NULL;
    return (struct hm_graph_exec *)(uintptr_t)object.value;
}

struct hm_graph_exec *
hm_graph_take(CUgraphExec handle)
{
    struct hm_object object;

    if (!hm_active() || !hm_object_take(HM_GRAPH_EXEC, (uintptr_t)handle, &object))
        return NULL;
    return (struct hm_graph_exec *)(uintptr_t)object.value;
}

/* Read what a device's pool holds; a reservation of a launch becomes part of it. */
static void
refresh(int device, struct hm_charge *reserved)
{
    struct pool *pool = &pools[device];
    uint64_t ticket = __atomic_add_fetch(&tickets, 1, __ATOMIC_ACQ_REL);
    cuuint64_t bytes = 0;
    CUresult result = REAL(cuDeviceGetGraphMemAttribute(
        hm_device_handle(device), CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &bytes));

    pthread_mutex_lock(&mutex);
    pool->charge.device = device;
    pool->charge.kind = HM_GRAPH;
    if (result == CUDA_SUCCESS && ticket > pool->ticket) {
        pool->bytes = bytes;
        pool->ticket = ticket;
    }
    if (reserved != NULL && reserved->device >= 0)
        pool->charge.bytes += reserved->bytes;
    hm_quota_adjust(&pool->charge, pool->bytes);
    pthread_mutex_unlock(&mutex);
    if (reserved != NULL)
        hm_quota_done(reserved);
}

/* The last graph is gone: what is still held is what outlived it. The mutex is held. */
static void
start_over(void)
{
    for (int i = 0; i < HM_DEVICES; i++) {
        pools[i].sum = pools[i].kept;
        pools[i].peak = pools[i].stream = 0;
        pools[i].mixed = false;
    }
}

static void
retire(struct hm_graph_exec *exec)
{
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < HM_DEVICES; i++)
        if (exec->launched >> i & 1 && !exec->keeps)
            pools[i].sum -= exec->bytes[i];
    if (__atomic_sub_fetch(&hm_graph_living, 1, __ATOMIC_RELAXED) == 0)
        start_over();
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < HM_DEVICES; i++)
        if (exec->launched >> i & 1)
            refresh(i, NULL);
    free(exec);
}

CUresult
hm_graph_made(struct hm_graph_exec *exec, const CUgraphExec *handle, CUresult result)
{
    struct hm_object object = {.type = HM_GRAPH_EXEC, .charge = {.device = -1}};

    if (exec == NULL)
        return result;
    object.key = result == CUDA_SUCCESS ? (uintptr_t)*handle : 0;
    object.value = (uintptr_t)exec;
    __atomic_fetch_or(&used, exec->devices, __ATOMIC_RELAXED);
    __atomic_fetch_add(&hm_graph_living, 1,
                       __ATOMIC_RELAXED); /* who launches it got the handle from here */
    if (result != CUDA_SUCCESS || !hm_object_put(&object))
        retire(exec);
    return result;
}

CUresult
hm_graph_destroyed(struct hm_graph_exec *exec, CUgraphExec handle, CUresult result)
{
    struct hm_object object = {.type = HM_GRAPH_EXEC, .charge = {.device = -1}};

    if (exec == NULL)
        return result;
    object.key = (uintptr_t)handle;
    object.value = (uintptr_t)exec;
    if (result == CUDA_SUCCESS || !hm_object_put(&object))
        retire(exec);
    return result;
}

static uint64_t
larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* By how much a launch may make the pool grow. */
static uint64_t
growth(const struct hm_graph_exec *exec, int device, uint64_t stream)
{
    struct pool *pool = &pools[device];
    uint64_t bytes = exec->bytes[device], more, demand;

    pthread_mutex_lock(&mutex);
    more = exec->launched >> device & 1 ? 0 : bytes;
    pool->mixed = pool->mixed || (pool->stream != 0 && pool->stream != stream);
    pool->stream = stream;
    if (pool->mixed)
        demand = pool->sum + more;
    else
        demand = pool->kept + (exec->keeps ? pool->peak + more : larger(pool->peak, more));
    demand = demand > pool->bytes ? demand - pool->bytes : 0;
    pthread_mutex_unlock(&mutex);
    return demand < bytes ? demand : bytes;
}

/* Exec has its memory now. */
static void
count_launch(struct hm_graph_exec *exec, int device)
{
    struct pool *pool = &pools[device];
    uint64_t bytes = exec->bytes[device];

    pthread_mutex_lock(&mutex);
    if ((exec->launched >> device & 1) == 0) {
        exec->launched |= 1u << device;
        pool->sum += bytes;
        if (exec->keeps)
            pool->kept += bytes;
        else
            pool->peak = larger(pool->peak, bytes);
    }
    pthread_mutex_unlock(&mutex);
}

/* Reserving may trim the pool, and then more has to be reserved. */
static bool
reserve(struct hm_charge *charge, const struct hm_graph_exec *exec, int device, uint64_t stream)
{
    uint64_t bytes = growth(exec, device, stream), again;

    for (;;) {
        if (!hm_quota_reserve(charge, HM_GRAPH, bytes > 0 ? device : -1, bytes))
            return false;
        again = growth(exec, device, stream);
        if (again <= bytes)
            return true;
        hm_quota_release(charge);
        bytes = again;
    }
}

bool
hm_graph_begin(struct hm_graph_flight *flight, struct hm_graph_exec *exec, uint64_t stream)
{
    flight->exec = exec;
    for (int i = 0; exec != NULL && i < HM_DEVICES; i++) {
        if ((exec->devices >> i & 1) == 0 || reserve(&flight->charge[i], exec, i, stream))
            continue;
        while (--i >= 0)
            if (exec->devices >> i & 1)
                hm_quota_release(&flight->charge[i]);
        return false;
    }
    return true;
}

CUresult
hm_graph_end(struct hm_graph_flight *flight, CUresult result)
{
    for (int i = 0; flight->exec != NULL && i < HM_DEVICES; i++) {
        if ((flight->exec->devices >> i & 1) == 0)
            continue;
        if (result == CUDA_SUCCESS)
            count_launch(flight->exec, i);
        refresh(i, &flight->charge[i]);
    }
    return result;
}

uint64_t
hm_graph_stream(CUstream stream, bool per_thread)
{
    if (stream == CU_STREAM_PER_THREAD || (stream == NULL && per_thread))
        return (uintptr_t)&hm_depth; /* of this thread */
    return stream == NULL ? (uintptr_t)CU_STREAM_LEGACY : (uintptr_t)stream;
}

void
hm_graph_trimmed(int device)
{
    struct pool *pool = &pools[device];

    refresh(device, NULL);
    pthread_mutex_lock(&mutex);
    if (pool->kept > pool->bytes) {
        pool->sum -= pool->kept - pool->bytes;
        pool->kept = pool->bytes;
    }
    pthread_mutex_unlock(&mutex);
}

static uint32_t
used_devices(int device)
{
    uint32_t all = __atomic_load_n(&used, __ATOMIC_RELAXED);

    return device < 0 ? all : all & 1u << device;
}

void
hm_graph_refresh(int device)
{
    uint32_t devices = used_devices(device);

    for (int i = 0; devices >> i != 0; i++)
        if (devices >> i & 1)
            refresh(i, NULL);
}

/* Allowed while a stream is capturing, in every mode (driver 580). */
void
hm_graph_trim(int device)
{
    uint32_t devices = used_devices(device);

    for (int i = 0; devices >> i != 0; i++) {
        if ((devices >> i & 1) == 0)
            continue;
        REAL(cuDeviceGraphMemTrim(hm_device_handle(i)));
        hm_graph_trimmed(i);
    }
}

void
hm_graph_after_fork_child(void)
{
    for (int i = 0; i < HM_DEVICES; i++)
        pools[i] = (struct pool){0};
    used = hm_graph_living = 0;
    pthread_mutex_init(&mutex, NULL);
}
