/*
 * All routes to one table. A program reaches a driver function by a linked name, by dlsym or dlvsym, or by
 * cuGetProcAddress; each of them meets the hook of the same name, version and stream mode, because what is replaced
 * is a pointer: one that the real library gave and that is in `real`.
 */
#include "resolve.h"

#include "log.h"
#include "tenant.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

struct hm_real real;
bool hm_cuda_resolved, hm_nvml_resolved;
__thread int hm_depth __attribute__((tls_model("initial-exec")));

void *(*hm_libc_dlsym)(void *, const char *);
void *(*hm_libc_dlvsym)(void *, const char *, const char *);

struct hm_entry {
    const char *name;
    void *hook; /* NULL: only called */
    void **real;
    bool nvml;
};

static const struct hm_entry entries[] = {
#define CUDA_HOOK(sym) {#sym, (void *)&sym, (void **)&real.sym, false},
#define NVML_HOOK(sym) {#sym, (void *)&sym, (void **)&real.sym, true},
#define CUDA_CALL(sym) {#sym, NULL, (void **)&real.sym, false},
#define NVML_CALL(sym) {#sym, NULL, (void **)&real.sym, true},
#include "hooks.def"
#undef CUDA_HOOK
#undef NVML_HOOK
#undef CUDA_CALL
#undef NVML_CALL
};

#define ENTRIES (sizeof(entries) / sizeof(entries[0]))
#define CUDA_LIBRARY "libcuda.so.1"
#define NVML_LIBRARY "libnvidia-ml.so.1"
#define BUCKETS 1024 /* a power of two, several times ENTRIES */

static uint16_t bucket[BUCKETS]; /* 1 + index into entries, by name; open addressing */

_Static_assert(ENTRIES * 3 < BUCKETS, "the name table gets crowded: double BUCKETS");

/* What an entry that the driver lacks points to; called without a prototype, so it takes no arguments. */
static CUresult
missing_cuda(void)
{
    return CUDA_ERROR_NOT_FOUND;
}

static nvmlReturn_t
missing_nvml(void)
{
    return NVML_ERROR_FUNCTION_NOT_FOUND;
}

bool
hm_missing(const void *entry)
{
    return entry == (const void *)missing_cuda || entry == (const void *)missing_nvml;
}

static uint32_t
name_hash(const char *name)
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (; *name != '\0'; name++)
        hash = (hash ^ (uint8_t)*name) * 16777619u;
    return hash;
}

static void
fill_table(void)
{
    for (size_t i = 0; i < ENTRIES; i++) {
        uint32_t at = name_hash(entries[i].name) % BUCKETS;

        while (bucket[at] != 0)
            at = (at + 1) % BUCKETS;
        bucket[at] = (uint16_t)(i + 1);
    }
}

static void
start(void)
{
    hm_libc_dlsym = (void *(*)(void *, const char *))hm_elf_find("dlsym");
    hm_libc_dlvsym = (void *(*)(void *, const char *, const char *))hm_elf_find("dlvsym");
    fill_table();
}

/* Not pthread_once: a sanitizer's runtime calls dlsym before that can be called. */
static void
started(void)
{
    static int state; /* 0, then 1 while a thread is at it, then 2 */
    int expected = 0;

    if (HM_LIKELY(__atomic_load_n(&state, __ATOMIC_ACQUIRE) == 2))
        return;
    if (__atomic_compare_exchange_n(&state, &expected, 1, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED)) {
        start();
        __atomic_store_n(&state, 2, __ATOMIC_RELEASE); /* pairs with the acquire loads here */
    }
    while (__atomic_load_n(&state, __ATOMIC_ACQUIRE) != 2)
        sched_yield();
}

static const struct hm_entry *
find_hook(const char *name)
{
    uint32_t at;

    if (strncmp(name, "cu", 2) != 0 && strncmp(name, "nvml", 4) != 0)
        return NULL;
    for (at = name_hash(name) % BUCKETS; bucket[at] != 0; at = (at + 1) % BUCKETS) {
        const struct hm_entry *entry = &entries[bucket[at] - 1];

        if (strcmp(entry->name, name) == 0)
            return entry->hook != NULL ? entry : NULL;
    }
    return NULL;
}

static bool
resolve(bool nvml, const char *library, void *missing)
{
    void *handle;

    started();
    hm_depth++; /* what the loader's constructors look up is not the program's */
    handle = dlopen(library, RTLD_LAZY);
    for (size_t i = 0; i < ENTRIES; i++) {
        void *symbol = NULL;

        if (entries[i].nvml != nvml)
            continue;
        if (handle != NULL)
            symbol = hm_libc_dlsym(handle, entries[i].name);
        *entries[i].real = symbol != NULL && symbol != entries[i].hook ? symbol : missing;
    }
    hm_depth--;
    return handle != NULL;
}

static void
resolve_cuda(void)
{
    resolve(false, CUDA_LIBRARY, (void *)missing_cuda);
    __atomic_store_n(&hm_cuda_resolved, true,
                     __ATOMIC_RELEASE); /* pairs with the acquire in REAL */
}

static void
resolve_nvml(void)
{
    resolve(true, NVML_LIBRARY, (void *)missing_nvml);
    __atomic_store_n(&hm_nvml_resolved, true,
                     __ATOMIC_RELEASE); /* pairs with the acquire in REAL_NVML */
}

bool
hm_resolve_cuda(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, resolve_cuda);
    return HM_HAS(cuInit);
}

bool
hm_resolve_nvml(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, resolve_nvml);
    return HM_HAS(nvmlInit_v2);
}

/* The hook in front of a pointer that the real library gave, or the pointer itself. */
static void *
hook_for(void *pointer)
{
    for (size_t i = 0; i < ENTRIES; i++)
        if (*entries[i].real == pointer && entries[i].hook != NULL && !hm_missing(pointer))
            return entries[i].hook;
    return pointer;
}

/* The function among the caller's own libraries: a module may be linked with a driver that nobody else sees. */
static void *
among_own(const void *caller, const char *name)
{
    struct link_map *map = NULL;
    void *handle, *found;
    Dl_info info;

    if (dladdr1(caller, &info, (void **)&map, RTLD_DL_LINKMAP) == 0 || map == NULL)
        return NULL;
    handle = dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == NULL)
        return NULL;
    found = hm_libc_dlsym(handle, name);
    dlclose(handle);
    return found;
}

/*
 * A look-up that ended at our own export would have gone on without us: to the real function behind us, or among the
 * caller's own libraries. The last dlsym here leaves the error that the program will ask dlerror for.
 */
static struct hm_answer
ended_here(const struct hm_entry *entry, const void *caller)
{
    void *own = among_own(caller, entry->name), *next = hm_libc_dlsym(RTLD_NEXT, entry->name);

    if (next == NULL)
        next = own != entry->hook ? own : NULL;
    if (next == NULL || hm_tenant_state() == HM_INERT)
        return (struct hm_answer){next, 1};
    if (entry->nvml)
        hm_resolve_nvml();
    else
        hm_resolve_cuda();
    return (struct hm_answer){entry->hook, 1};
}

/*
 * Decide a look-up of a name of ours. RTLD_NEXT depends on who asks, which only the real dlsym can see: somebody in
 * front of us meets our export, somebody behind us the driver.
 */
static struct hm_answer
answer(const struct hm_entry *entry, void *handle, const void *caller, void *found)
{
    if (handle == RTLD_NEXT)
        return (struct hm_answer){NULL, found == NULL};
    if (found == entry->hook)
        return ended_here(entry, caller);
    if (found == NULL || hm_tenant_state() == HM_INERT)
        return (struct hm_answer){found, found != NULL};
    if ((entry->nvml ? hm_resolve_nvml() : hm_resolve_cuda()) && found == *entry->real)
        return (struct hm_answer){entry->hook, 1};
    return (struct hm_answer){found, 1};
}

struct hm_answer
hm_dlsym_answer(void *handle, const char *name, const char *unused, const void *caller)
{
    const struct hm_entry *entry;

    (void)unused;
    started();
    if (hm_depth > 0 || name == NULL || (entry = find_hook(name)) == NULL)
        return (struct hm_answer){NULL, 0};
    return answer(entry, handle, caller, hm_libc_dlsym(handle, name));
}

struct hm_answer
hm_dlvsym_answer(void *handle, const char *name, const char *version, const void *caller)
{
    const struct hm_entry *entry;

    started();
    if (hm_depth > 0 || name == NULL || (entry = find_hook(name)) == NULL)
        return (struct hm_answer){NULL, 0};
    return answer(entry, handle, caller, hm_libc_dlvsym(handle, name, version));
}

static CUresult
replace(CUresult result, void **pointer)
{
    if (result == CUDA_SUCCESS && pointer != NULL && *pointer != NULL && hm_depth == 0 &&
        hm_tenant_state() != HM_INERT)
        *pointer = hook_for(*pointer);
    return result;
}

HM_HOOK CUresult
cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags)
{
    return replace(REAL(cuGetProcAddress(symbol, pfn, cudaVersion, flags)), pfn);
}

HM_HOOK CUresult
cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                    CUdriverProcAddressQueryResult *symbolStatus)
{
    return replace(REAL(cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, symbolStatus)), pfn);
}
