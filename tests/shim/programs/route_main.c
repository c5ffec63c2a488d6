/*
 * Looks every name of a list up by every route and prints where each leads. Standard input: one NAME a line; a line
 * `get BASE` asks cuGetProcAddress for it at every CUDA version and stream mode. -DLINKED: linked with the driver.
 */
#ifdef LINKED
#define __CUDA_API_VERSION_INTERNAL
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#endif
#include <cuda.h>
#include <nvml.h>

#include <stdlib.h>

#include "route_where.h"

static const int versions[] = {
    2000,  2010,  2020,  2030,  3000,  3010,  3020,  4000,  4010,  4020,  5000,
    5050,  6000,  6050,  7000,  7050,  8000,  9000,  9010,  9020,  10000, 10010,
    10020, 11000, 11010, 11020, 11030, 11040, 11050, 11060, 11070, 11080, 12000,
    12010, 12020, 12030, 12040, 12050, 12060, 12070, 12080, 12090, 13000,
};

#ifdef LINKED
static const struct {
    const char *name;
    const void *address;
} linked[] = {
#define CUDA_HOOK(sym) {#sym, (const void *)&sym},
#define NVML_HOOK(sym) {#sym, (const void *)&sym},
#define CUDA_CALL(sym) {#sym, (const void *)&sym},
#define NVML_CALL(sym) {#sym, (const void *)&sym},
#include "hooks.def"
};
#endif

typedef void *(*lookup)(const char *name);

static void
one_name(const char *name, void *cuda, void *nvml, lookup front, lookup behind, lookup local)
{
    void *handle = strncmp(name, "nvml", 4) == 0 ? nvml : cuda;
    const char *version = getenv("ROUTE_VERSION");

    route_print("handle", name, dlsym(handle, name));
    route_print("default", name, dlsym(RTLD_DEFAULT, name));
    route_print("next", name, dlsym(RTLD_NEXT, name));
    route_print("versioned", name, dlvsym(handle, name, version != NULL ? version : "GLIBC_2.2.5"));
    if (front != NULL)
        route_print("front", name, front(name));
    if (behind != NULL)
        route_print("behind", name, behind(name));
    if (local != NULL)
        route_print("local", name, local(name));
}

static void
by_version(const char *base, void *cuda)
{
    CUresult (*get)(const char *, void **, int, cuuint64_t);
    CUresult (*get_v2)(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

    *(void **)&get = dlsym(cuda, "cuGetProcAddress");
    *(void **)&get_v2 = dlsym(cuda, "cuGetProcAddress_v2");
    for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
        for (cuuint64_t flags = 0; flags <= 2; flags++) {
            void *first = NULL, *second = NULL;
            CUdriverProcAddressQueryResult status;
            char key[128];

            snprintf(key, sizeof(key), "%s:%d:%d", base, versions[i], (int)flags);
            if (get(base, &first, versions[i], flags) == CUDA_SUCCESS)
                route_print("get", key, first);
            if (get_v2(base, &second, versions[i], flags, &status) == CUDA_SUCCESS)
                route_print("get_v2", key, second);
        }
    }
}

int
main(int count, char **argument)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
    void *module = count > 1 ? dlopen(argument[1], RTLD_LAZY | RTLD_LOCAL) : NULL;
    lookup front, behind, local = NULL;
    char name[128];

    if (cuda == NULL || nvml == NULL)
        return 2;
    *(void **)&front = dlsym(RTLD_DEFAULT, "route_front");
    *(void **)&behind = dlsym(RTLD_DEFAULT, "route_behind");
    if (module != NULL)
        *(void **)&local = dlsym(module, "route_local");
#ifdef LINKED
    for (size_t i = 0; i < sizeof(linked) / sizeof(linked[0]); i++)
        route_print("linked", linked[i].name, linked[i].address);
#endif
    while (scanf("%127s", name) == 1) {
        if (strcmp(name, "get") != 0)
            one_name(name, cuda, nvml, front, behind, local);
        else if (scanf("%127s", name) == 1)
            by_version(name, cuda);
    }
    return 0;
}
