/*
 * The pages of a tenant that nobody sets up but its own processes: who comes first makes them, with
 * the folder locked, so that the others find them whole.
 *
 *   CUDA_DEVICE_MEMORY_SHARED_CACHE=/x/y.cache    /x/y.hamirt
 *   not set                                       /tmp/hamirt-UID/standalone
 */
#include "config.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CACHE "CUDA_DEVICE_MEMORY_SHARED_CACHE"
#define CACHE_SUFFIX ".cache"
#define CACHE_LENGTH 190
#define PATH_BYTES 200 /* with another suffix */
#define LOCK_TRIES 500 /* of 10 ms each */

/* A pipe in a page's place does not block us. */
#define PAGE_FLAGS (O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)

/* Where the pages are, and who may use them: every user of a container, or this user. */
struct place {
    char path[PATH_BYTES];
    bool shared;
    const char *variable; /* that named it, for the sentence */
    char *error;          /* what hm_config_folder was given for its sentence */
    size_t error_size;
};

static void
close_fd(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define AUTO_CLOSE __attribute__((cleanup(close_fd)))

static bool
fail(const struct place *place, const char *what)
{
    snprintf(place->error, place->error_size, "%s%s can't hold the tenant's pages: %s",
             place->variable, place->path, what);
    return false;
}

static int
fail_fd(const struct place *place, const char *what)
{
    fail(place, what);
    return -1;
}

/*
 * A folder that everybody may write, without the sticky bit: HAMi's device plugin mounts one like
 * that. There 0700 would protect nothing, and the container's processes may be several users'.
 */
static bool
is_open_to_all(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && (status.st_mode & (S_IWOTH | S_ISVTX)) == S_IWOTH;
}

/* A folder, made if it is not there, that only its owner may change. -1: it can't be used. */
static int
open_folder(const struct place *place, int parent, const char *name)
{
    mode_t mode = place->shared ? 0755 : 0700;
    bool made = mkdirat(parent, name, mode) == 0;
    AUTO_CLOSE int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat status;
    int opened = fd;

    if (fd < 0 || fstat(fd, &status) != 0 || (made && fchmod(fd, mode) != 0))
        return fail_fd(place, errno == ENOTDIR ? "a file or a symbolic link is in its place"
                                               : strerror(errno));
    if (!made && !place->shared && status.st_uid != geteuid() && status.st_uid != 0)
        return fail_fd(place, "it belongs to another user; name another file with " CACHE);
    if (!made && (status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return fail_fd(place, "others may change it; name another file with " CACHE);
    fd = -1; /* it is the caller's now */
    return opened;
}

static bool
lock(int fd)
{
    const struct timespec pause = {.tv_nsec = 10000000};

    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

/* A page's file, made if it is not there; read-only if it is another user's. -1: not usable. */
static int
open_page(const struct place *place, int folder, const char *name, mode_t mode)
{
    AUTO_CLOSE int fd = openat(folder, name, O_RDWR | O_CREAT | PAGE_FLAGS, mode);
    struct stat status;
    int opened;

    if (fd < 0 && errno == EACCES)
        fd = openat(folder, name, O_RDONLY | PAGE_FLAGS);
    if (fd < 0 || fstat(fd, &status) != 0)
        return fail_fd(place,
                       errno == ELOOP ? "a symbolic link is in place of a page" : strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_nlink != 1)
        return fail_fd(place, "something else is in place of a page");
    if (status.st_size == 0)
        fchmod(fd, mode); /* whatever the program's umask is */
    opened = fd;
    fd = -1;
    return opened;
}

/* What both pages begin with. */
struct head {
    uint64_t magic;
    uint32_t version;
    uint32_t size;
};

static bool
is_whole(int fd, uint64_t magic, size_t size)
{
    struct stat status;
    struct head head;

    return fstat(fd, &status) == 0 && status.st_size >= (off_t)size &&
           pread(fd, &head, sizeof(head), 0) == sizeof(head) && head.magic == magic &&
           head.version == HM_VERSION && head.size == size;
}

static bool
is_in_use(int usage)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = HM_LOCK_SLOTS, .l_len = HM_SLOTS};

    return fcntl(usage, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static bool
is_writable(int fd)
{
    return (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR;
}

static bool
is_same(int fd, const struct hm_limits *limits)
{
    struct hm_limits there;

    if (pread(fd, &there, sizeof(there), 0) != sizeof(there) ||
        there.device_count != limits->device_count || there.node_devices != limits->node_devices)
        return false;
    for (uint32_t i = 0; i < limits->device_count; i++)
        if (strncmp(there.device[i].uuid, limits->device[i].uuid, HM_UUID_BYTES) != 0 ||
            there.device[i].memory_bytes != limits->device[i].memory_bytes ||
            there.device[i].time_percent != limits->device[i].time_percent ||
            there.device[i].weight != limits->device[i].weight ||
            there.device[i].latency_class != limits->device[i].latency_class)
            return false;
    return true;
}

/* Never truncated: a reader may have it mapped. And the room is taken before it is written. */
static int
make_usage(int fd)
{
    int result = posix_fallocate(fd, 0, sizeof(struct hm_usage));
    struct hm_usage *usage;

    if (result != 0)
        return result;
    usage = mmap(NULL, sizeof(*usage), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (usage == MAP_FAILED)
        return errno;
    memset(usage, 0, sizeof(*usage));
    usage->magic = HM_USAGE_MAGIC;
    usage->version = HM_VERSION;
    usage->size = sizeof(*usage);
    munmap(usage, sizeof(*usage));
    return 0;
}

/* The limits come last: with them the pages are whole. */
static bool
make_pages(const struct place *place, int limits, int usage)
{
    const struct hm_limits *image = hm_config_limits();
    int result = make_usage(usage);

    if (result != 0)
        return fail(place, strerror(result));
    if (pwrite(limits, image, sizeof(*image), 0) != sizeof(*image))
        return fail(place, strerror(errno));
    hm_config_log_notes();
    return true;
}

/* The folder is locked. Limits of an earlier run give way, those of living processes hold. */
static bool
settle_pages(const struct place *place, int folder)
{
    AUTO_CLOSE int ro = open_folder(place, folder, "ro");
    AUTO_CLOSE int rw = ro >= 0 ? open_folder(place, folder, "rw") : -1;
    AUTO_CLOSE int limits = rw >= 0 ? open_page(place, ro, "limits", 0644) : -1;
    AUTO_CLOSE int usage = limits >= 0 ? open_page(place, rw, "usage", 0666) : -1;
    bool whole;

    if (usage < 0)
        return false;
    whole = is_whole(limits, HM_LIMITS_MAGIC, sizeof(struct hm_limits)) &&
            is_whole(usage, HM_USAGE_MAGIC, sizeof(struct hm_usage));
    if (whole && is_same(limits, hm_config_limits()))
        return true;
    if (!is_in_use(usage) && is_writable(limits))
        return make_pages(place, limits, usage);
    if (!whole)
        return fail(place,
                    "others use it with another version of hamirt; name another file with " CACHE);
    hm_log("the limits in %s hold, not those in this process's variables: other processes run "
           "under them, or another user made them",
           place->path);
    return true;
}

/* The folder that the variable's file is in, made if only it is missing. -1: it can't be used. */
static int
open_parent(struct place *place, const char *cache)
{
    char copy[PATH_BYTES];
    size_t length = strlen(cache);
    const char *folder;
    int fd;

    snprintf(place->path, sizeof(place->path), "%s", cache);
    if (length == 0 || length > CACHE_LENGTH || cache[0] != '/' || cache[length - 1] == '/')
        return fail_fd(place, "it is not the absolute path of a file, with at most 190 characters");
    folder = dirname(strcpy(copy, cache));
    mkdir(folder, 0755);
    place->shared = is_open_to_all(folder);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : fail_fd(place, strerror(errno));
}

/* The folder for the pages, and its path in place. -1: it can't be used. */
static int
open_place(struct place *place)
{
    const char *cache = secure_getenv(CACHE);
    size_t suffix = strlen(CACHE_SUFFIX), length = cache != NULL ? strlen(cache) : 0;
    AUTO_CLOSE int parent = -1;

    if (cache == NULL) {
        snprintf(place->path, sizeof(place->path), "/tmp/hamirt-%u", geteuid());
        parent = open_folder(place, AT_FDCWD, place->path);
        strcat(place->path, "/standalone");
    } else {
        place->variable = CACHE "=";
        parent = open_parent(place, cache);
        if (parent >= 0 && length > suffix && strcmp(cache + length - suffix, CACHE_SUFFIX) == 0)
            place->path[length - suffix] = '\0';
        if (parent >= 0)
            strcat(place->path, ".hamirt");
    }
    return parent >= 0 ? open_folder(place, parent, strrchr(place->path, '/') + 1) : -1;
}

bool
hm_config_folder(char *path, size_t path_size, char *error, size_t error_size)
{
    struct place place = {.variable = "", .error = error, .error_size = error_size};
    AUTO_CLOSE int folder = open_place(&place);
    bool done;

    if (folder < 0)
        return false;
    if (!lock(folder))
        return fail(&place, "another process has kept it locked for five seconds");
    done = settle_pages(&place, folder);
    flock(folder, LOCK_UN); /* not left to close: a fork child may have the folder too */
    if (done && snprintf(path, path_size, "%s", place.path) >= (int)path_size)
        return fail(&place, "its name is too long");
    return done;
}
