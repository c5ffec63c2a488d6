#include "cuda_space.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* More data than this are not taken along when memory becomes shared. */
#define SHARED_DATA_BYTES (256 * HM_MIB)

struct shared_space {
    uint64_t address;
    struct hm_space_share share;
    struct shared_space *next;
};

static struct shared_space *shared_spaces;

uint64_t
hm_space_take(uint64_t hint, uint64_t bytes, bool accessible)
{
    int protection = accessible ? PROT_READ | PROT_WRITE : PROT_NONE;
    uint64_t whole = hm_round_up(bytes, HM_BLOCK_BYTES);
    void *map = mmap((void *)hint, whole + HM_BLOCK_BYTES, protection,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t start = (uint64_t)map;
    uint64_t address = hm_round_up(start, HM_BLOCK_BYTES);

    if (map == MAP_FAILED)
        return 0;
    if (address > start)
        munmap(map, address - start);
    if (start + HM_BLOCK_BYTES > address)
        munmap((void *)(address + whole), start + HM_BLOCK_BYTES - address);
    return address;
}

static struct shared_space **
find_shared(uint64_t address)
{
    struct shared_space **link = &shared_spaces;

    while (*link != NULL && (*link)->address != address)
        link = &(*link)->next;
    return link;
}

void
hm_space_give(uint64_t address, uint64_t bytes)
{
    struct shared_space **link = find_shared(address);
    struct shared_space *shared = *link;

    munmap((void *)address, hm_round_up(bytes, HM_BLOCK_BYTES));
    if (shared == NULL)
        return;
    *link = shared->next;
    close(shared->share.fd);
    free(shared);
}

static int
file_with_data(uint64_t address, uint64_t bytes)
{
    uint64_t kept = bytes < SHARED_DATA_BYTES ? bytes : SHARED_DATA_BYTES;
    int fd = hm_memory_file("simgpu-ipc");

    if (fd >= 0 && (ftruncate(fd, (off_t)bytes) != 0 ||
                    pwrite(fd, (void *)address, kept, 0) != (ssize_t)kept)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

struct hm_space_share
hm_space_share(uint64_t address, uint64_t bytes)
{
    struct shared_space *shared = *find_shared(address);
    uint64_t whole = hm_round_up(bytes, HM_BLOCK_BYTES);
    int fd;

    if (shared != NULL)
        return shared->share;
    fd = file_with_data(address, whole);
    if (fd >= 0)
        mmap((void *)address, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    shared = hm_allocate(sizeof(*shared));
    *shared = (struct shared_space){
        .address = address,
        .share = {.pid = getpid(), .fd = fd, .bytes = whole},
        .next = shared_spaces,
    };
    shared_spaces = shared;
    return shared->share;
}

static int
open_share(const struct hm_space_share *share)
{
    char path[64];
    struct stat status;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", share->pid, share->fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &status) != 0 || (uint64_t)status.st_size != share->bytes)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

uint64_t
hm_space_join(const struct hm_space_share *share)
{
    uint64_t address = hm_space_take(0, share->bytes, true);
    int fd;

    if (address == 0)
        return 0;
    fd = open_share(share);
    if (fd >= 0) {
        mmap((void *)address, share->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
        close(fd);
    }
    return address;
}
