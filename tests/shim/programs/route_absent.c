/*
 * On a driver that lacks the hooks named as arguments: prints what dlsym on its handle and a linked call answer for
 * each. Everything else about the driver works.
 */
#define __CUDA_API_VERSION_INTERNAL
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <cuda.h>
#include <nvml.h>

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef int (*any)(long, long, long, long, long, long);

static const struct {
    const char *name;
    any call;
} linked[] = {
#define CUDA_HOOK(sym) {#sym, (any)(void *)&sym},
#define NVML_HOOK(sym) {#sym, (any)(void *)&sym},
#define CUDA_CALL(sym)
#define NVML_CALL(sym)
#include "hooks.def"
};

int
main(int count, char **argument)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_LAZY), *nvml = dlopen("libnvidia-ml.so.1", RTLD_LAZY);

    if (cuda == NULL || nvml == NULL)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < count; i++) {
        for (size_t j = 0; j < sizeof(linked) / sizeof(linked[0]); j++) {
            if (strcmp(linked[j].name, argument[i]) != 0)
                continue;
            printf("%s %s ", argument[i],
                   dlsym(argument[i][0] == 'n' ? nvml : cuda, argument[i]) != NULL ? "found"
                                                                                   : "NULL");
            printf("%d\n", linked[j].call(0, 0, 0, 0, 0, 0));
        }
    }
    return 0;
}
