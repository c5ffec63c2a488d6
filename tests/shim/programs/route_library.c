/*
 * A library of somebody else's that asks for what comes next, or at all. -DLOOKUP=name names its function,
 * -DHANDLE=RTLD_NEXT what it asks with; -DWRAP makes it stand in front of malloc, open and two functions of the
 * driver too, as a profiler's preload does.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>

#ifndef HANDLE
#define HANDLE RTLD_NEXT
#endif

/* Never a tail call: who asks is found by the return address. */
void *__attribute__((noinline))
LOOKUP(const char *name)
{
    void *volatile found = dlsym(HANDLE, name);

    return found;
}

#ifdef LINKED
int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes);

void *
route_linked(void)
{
    return (void *)&cuMemAlloc_v2;
}
#endif

#ifdef WRAP
#define PASTE(a, b) a##b
#define NAME(a, b) PASTE(a, b)
#define COUNT(what) NAME(LOOKUP, _##what##s)

int COUNT(malloc), COUNT(open), COUNT(alloc);

void *
malloc(size_t bytes)
{
    static void *(*next)(size_t);

    if (next == NULL)
        *(void **)&next = LOOKUP("malloc");
    COUNT(malloc)++;
    return next(bytes);
}

int
open(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    va_list arguments;
    int mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, int);
    va_end(arguments);
    if (next == NULL)
        *(void **)&next = LOOKUP("open");
    COUNT(open)++;
    return next(path, flags, mode);
}

int
cuMemAlloc_v2(unsigned long long *pointer, size_t bytes)
{
    static int (*next)(unsigned long long *, size_t);

    if (next == NULL)
        *(void **)&next = LOOKUP("cuMemAlloc_v2");
    COUNT(alloc)++;
    return next(pointer, bytes);
}
#endif
