/* Where a pointer leads: prints ROUTE NAME LIBRARY OFFSET, or - - for NULL. */
#pragma once
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static inline void
route_print(const char *route, const char *name, const void *pointer)
{
    struct link_map *map = NULL;
    Dl_info info;
    const char *slash;

    if (pointer == NULL || dladdr1(pointer, &info, (void **)&map, RTLD_DL_LINKMAP) == 0) {
        printf("%s %s - -\n", route, name);
        return;
    }
    slash = strrchr(map->l_name, '/');
    printf("%s %s %s %lx\n", route, name, slash != NULL ? slash + 1 : "program",
           (unsigned long)((uintptr_t)pointer - map->l_addr));
}
