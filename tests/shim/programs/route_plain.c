/*
 * A program that is not linked with the driver. `errors`: what dlsym and dlerror say for names that nobody has, or
 * that only a driver has that is not loaded. `alloc`: the driver's functions as wrapped by other preloaded libraries.
 * `module FILE`: what a module that is linked with the driver finds, by RTLD_DEFAULT and by its own calls.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "route_where.h"

static void
ask(const char *what, void *handle, const char *name, const char *version)
{
    void *found;
    const char *error;

    dlerror();
    found = version != NULL ? dlvsym(handle, name, version) : dlsym(handle, name);
    error = dlerror();
    printf("%s %s: %s, %s\n", what, name, found != NULL ? "found" : "NULL",
           error != NULL ? error : "no error");
}

static int
errors(void)
{
    void *libc = dlopen("libc.so.6", RTLD_LAZY), *cuda;

    ask("default", RTLD_DEFAULT, "cuInit", NULL);
    ask("default", RTLD_DEFAULT, "cuMemAlloc_v2", NULL);
    ask("default", RTLD_DEFAULT, "nvmlDeviceGetCount_v2", NULL);
    ask("next", RTLD_NEXT, "cuInit", NULL);
    ask("default", RTLD_DEFAULT, "curl_easy_init", NULL);
    ask("default", RTLD_DEFAULT, "nobody_has_this", NULL);
    ask("next", RTLD_NEXT, "nobody_has_this", NULL);
    ask("libc", libc, "cuInit", NULL);
    ask("libc", libc, "nobody_has_this", NULL);
    ask("libc versioned", libc, "malloc", "GLIBC_2.2.5");
    ask("libc versioned", libc, "malloc", "GLIBC_9.9");
    ask("libc versioned", libc, "cuInit", "GLIBC_2.2.5");
    cuda = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (cuda == NULL)
        return 2;
    ask("cuda", cuda, "cuInit", NULL);
    ask("cuda", cuda, "cuNobodyHasThis", NULL);
    ask("cuda", cuda, "cuMemAllocX", NULL);
    ask("cuda", cuda, "nvmlDeviceGetCount_v2", NULL);
    ask("default", RTLD_DEFAULT, "cuInit",
        NULL); /* still not: the driver is loaded for its handle only */
    return 0;
}

static int
module(const char *path)
{
    void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    void *(*by_name)(const char *), *(*linked)(void);

    if (handle == NULL)
        return 2;
    *(void **)&by_name = dlsym(handle, "route_local");
    *(void **)&linked = dlsym(handle, "route_linked");
    route_print("default", "cuMemAlloc_v2", by_name("cuMemAlloc_v2"));
    route_print("default", "cuMemFreeHost", by_name("cuMemFreeHost"));
    route_print("default", "nobody_has_this", by_name("nobody_has_this"));
    route_print("linked", "cuMemAlloc_v2", linked());
    return 0;
}

static int
number(const char *name)
{
    const int *counter = dlsym(RTLD_DEFAULT, name);

    return counter != NULL ? *counter : -1;
}

static int
alloc(void)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL);
    int (*init)(unsigned), (*retain)(void **, int), (*set)(void *),
        (*take)(unsigned long long *, size_t);
    void *context = NULL, *memory;
    unsigned long long pointer = 0;
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC), result;

    if (cuda == NULL || fd < 0)
        return 2;
    *(void **)&init = dlsym(cuda, "cuInit");
    *(void **)&retain = dlsym(cuda, "cuDevicePrimaryCtxRetain");
    *(void **)&set = dlsym(cuda, "cuCtxSetCurrent");
    *(void **)&take = dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
    if (init(0) != 0 || retain(&context, 0) != 0 || set(context) != 0)
        return 3;
    result = take(&pointer, 64 << 20);
    memory = malloc(1000);
    printf("result %d, pointer %s\n", result, pointer != 0 ? "set" : "0");
    printf("front: malloc %s, open %s, alloc %d\n",
           number("route_front_mallocs") > 0 ? "yes" : "no",
           number("route_front_opens") > 0 ? "yes" : "no", number("route_front_allocs"));
    printf("behind: malloc %s, open %s, alloc %d\n",
           number("route_behind_mallocs") > 0 ? "yes" : "no",
           number("route_behind_opens") > 0 ? "yes" : "no", number("route_behind_allocs"));
    free(memory);
    close(fd);
    fflush(stdout);
    if (getchar() == EOF) /* until somebody has looked at the ledger */
        return 0;
    return 0;
}

int
main(int count, char **argument)
{
    if (count < 2)
        return 1;
    if (strcmp(argument[1], "module") == 0)
        return module(argument[2]);
    return strcmp(argument[1], "errors") == 0 ? errors() : alloc();
}
