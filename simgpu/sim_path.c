#include "sim_path.h"

#include <errno.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void *
hm_allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

int
hm_memory_file(const char *name)
{
    return (int)syscall(SYS_memfd_create, name, MFD_CLOEXEC); /* in glibc since 2.27 */
}

uint64_t
hm_env_number(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    char *end;
    uint64_t number;

    if (text == NULL || *text == '\0')
        return fallback;
    number = strtoull(text, &end, 0);
    return *end == '\0' ? number : fallback;
}

static int
path_root(char *path, size_t size)
{
    const char *root = getenv("HAMIRT_ROOT");
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    if (root != NULL && *root != '\0')
        return snprintf(path, size, "%s", root);
    if (geteuid() == 0)
        return snprintf(path, size, "/run/hamirt");
    if (runtime != NULL && *runtime != '\0')
        return snprintf(path, size, "%s/hamirt", runtime);
    return snprintf(path, size, "/tmp/hamirt-%u", (unsigned)geteuid());
}

static bool
make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        int failed;

        *slash = '\0';
        failed = mkdir(path, 0700) != 0 && errno != EEXIST;
        *slash = '/';
        if (failed)
            return false;
    }
    return true;
}

bool
hm_path_state(char *path, size_t size)
{
    const char *given = getenv("HAMIRT_SIM_STATE");
    int length;

    if (given != NULL && *given != '\0') {
        length = snprintf(path, size, "%s", given);
    } else {
        length = path_root(path, size);
        if (length > 0 && (size_t)length < size)
            length += snprintf(path + length, size - (size_t)length, "/sim");
    }
    return length > 0 && (size_t)length < size && make_folders(path);
}
