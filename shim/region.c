/*
 * The two pages as this process sees them, its slot, and the two kinds of OFD lock: one byte for the ledger, one for
 * each slot. The kernel gives a lock back when its owner dies or execs, whatever PID namespace it is in.
 */
#include "log.h"
#include "tenant.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FIRST_PAUSE_NS 5000
#define LONGEST_PAUSE_NS 1000000
#define LONGEST_WAIT_NS 2000000000
#define LOWEST_FD 200 /* out of the way of programs that count on the low numbers */

static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* between threads; the OFD lock is between processes */
static int usage_fd = -1;
static dev_t usage_dev;
static ino_t usage_ino;
static struct hm_slot *own; /* written under the mutex */

static int
lock_byte(int command, off_t byte, short type, struct flock *out)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int result;

    do
        result = fcntl(usage_fd, command, &lock);
    while (result != 0 && errno == EINTR);
    if (out != NULL)
        *out = lock;
    return result;
}

static int
open_usage(const char *path)
{
    int low = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), high;

    if (low < 0)
        return -1;
    high = fcntl(low, F_DUPFD_CLOEXEC, LOWEST_FD);
    if (high < 0)
        return low;
    close(low);
    return high;
}

/* A program may close file descriptors that it does not know, and open others under the same numbers. */
static bool
usage_fd_is_ours(void)
{
    struct stat status;

    return usage_fd >= 0 && fstat(usage_fd, &status) == 0 && status.st_dev == usage_dev &&
           status.st_ino == usage_ino;
}

static bool
reopen_usage(void)
{
    struct stat status;
    int fd = open_usage(hm_tenant.usage_path);

    if (fd < 0 || fstat(fd, &status) != 0 ||
        (usage_ino != 0 && (status.st_ino != usage_ino || status.st_dev != usage_dev))) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    usage_fd = fd;
    usage_dev = status.st_dev;
    usage_ino = status.st_ino;
    return true;
}

static void *
map_page(const char *path, int fd, size_t size, int protection, char *error, size_t error_size)
{
    struct stat status;
    void *page;

    if (fd < 0 || fstat(fd, &status) != 0) {
        snprintf(error, error_size, "%s can't be opened: %s", path, strerror(errno));
        return NULL;
    }
    if (!S_ISREG(status.st_mode)) {
        snprintf(error, error_size, "%s is not a regular file", path);
        return NULL;
    }
    if (status.st_size < (off_t)size) {
        snprintf(error, error_size, "%s is too short: %lld of %zu bytes", path,
                 (long long)status.st_size, size);
        return NULL;
    }
    page = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        snprintf(error, error_size, "%s can't be mapped: %s", path, strerror(errno));
        return NULL;
    }
    return page;
}

static bool
check_header(const char *path, const void *page, uint64_t magic, size_t size, char *error,
             size_t error_size)
{
    const struct hm_limits *head =
        page; /* magic, version and size are the first fields of both pages */

    if (head->magic != magic)
        snprintf(error, error_size, "%s is not a page of hamirt", path);
    else if (head->version != HM_VERSION || head->size != size)
        snprintf(error, error_size,
                 "%s is of version %u (%u bytes), this library knows %d (%zu bytes)", path,
                 head->version, head->size, HM_VERSION, size);
    else
        return true;
    return false;
}

/* A mapping keeps its open file alive, locks and all, in fork children too: so each page is mapped by a file of its own,
   and the one that holds the locks is not mapped. */
static void *
open_and_map(const char *path, int flags, size_t size, int protection, char *error,
             size_t error_size)
{
    int fd =
        open(path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* a FIFO must not hold us up */
    void *page = map_page(path, fd, size, protection, error, error_size);

    if (fd >= 0)
        close(fd);
    return page;
}

bool
hm_region_map(struct hm_tenant *tenant, char *error, size_t error_size)
{
    void *page = open_and_map(tenant->limits_path, O_RDONLY, sizeof(struct hm_limits), PROT_READ,
                              error, error_size);

    if (page == NULL || !check_header(tenant->limits_path, page, HM_LIMITS_MAGIC,
                                      sizeof(struct hm_limits), error, error_size))
        return false;
    tenant->limits = page;
    if (tenant->limits->device_count > HM_DEVICES) {
        snprintf(error, error_size, "%s names %u devices, at most %d are known",
                 tenant->limits_path, tenant->limits->device_count, HM_DEVICES);
        return false;
    }
    reopen_usage();
    page = open_and_map(tenant->usage_path, O_RDWR, sizeof(struct hm_usage), PROT_READ | PROT_WRITE,
                        error, error_size);
    if (page == NULL || !check_header(tenant->usage_path, page, HM_USAGE_MAGIC,
                                      sizeof(struct hm_usage), error, error_size))
        return false;
    tenant->usage = page;
    return true;
}

/* The program closed our file: open it again and lock our slot again, unless somebody took us for dead meanwhile. */
static void
recover(void)
{
    struct hm_slot *slot = own;

    usage_fd = -1;
    if (!reopen_usage()) {
        hm_log_once("%s can't be opened again: %s; no more memory for this process",
                    hm_tenant.usage_path, strerror(errno));
        return;
    }
    if (slot != NULL && (lock_byte(F_OFD_SETLK, HM_LOCK_SLOTS + (slot - hm_tenant.usage->slot),
                                   F_WRLCK, NULL) != 0 ||
                         slot->taken == 0 || slot->pid != (uint32_t)getpid()))
        __atomic_store_n(&own, NULL, __ATOMIC_RELEASE);
}

/* Not F_OFD_SETLKW: a process that is stopped with the lock would hold up all others for as long as it pleases. */
static bool
lock_ledger(void)
{
    struct timespec pause = {.tv_nsec = FIRST_PAUSE_NS};

    for (long waited_ns = 0; waited_ns < LONGEST_WAIT_NS; waited_ns += pause.tv_nsec) {
        if (lock_byte(F_OFD_SETLK, HM_LOCK_LEDGER, F_WRLCK, NULL) == 0)
            return true;
        if (errno != EAGAIN && errno != EACCES)
            return false; /* no file: recover said so */
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < LONGEST_PAUSE_NS)
            pause.tv_nsec *= 2;
    }
    hm_log_once("another process of %s holds the ledger of its memory and does not go on; until it "
                "does, this one gets "
                "no more",
                hm_tenant.limits->tenant);
    return false;
}

bool
hm_ledger_lock(void)
{
    pthread_mutex_lock(&mutex);
    if (HM_UNLIKELY(!usage_fd_is_ours()))
        recover();
    if (lock_ledger())
        return true;
    pthread_mutex_unlock(&mutex);
    return false;
}

void
hm_ledger_unlock(void)
{
    lock_byte(F_OFD_SETLK, HM_LOCK_LEDGER, F_UNLCK, NULL);
    pthread_mutex_unlock(&mutex);
}

/* Memory that it shared by IPC may still be held by others, and is theirs now: the next grant has to look. */
static void
clear_slot(struct hm_slot *slot)
{
    for (int i = 0; i < HM_DEVICES; i++)
        if (slot->use[i].grant != 0)
            __atomic_store_n(&hm_tenant.usage->device[i].near, HM_DOUBT, __ATOMIC_RELAXED);
    memset(slot->use, 0, sizeof(slot->use));
    __atomic_store_n(&slot->taken, 0,
                     __ATOMIC_RELEASE); /* pairs with the acquire of whoever sums over slots */
}

bool
hm_region_slot_lives(int slot)
{
    struct flock lock;

    return own == &hm_tenant.usage->slot[slot] ||
           lock_byte(F_OFD_GETLK, HM_LOCK_SLOTS + (off_t)slot, F_WRLCK, &lock) != 0 ||
           lock.l_type != F_UNLCK;
}

void
hm_region_bury(void)
{
    if (!hm_ledger_lock())
        return;
    for (uint32_t i = 0; i < hm_slots(); i++) {
        struct hm_slot *slot = &hm_tenant.usage->slot[i];
        struct flock lock;

        if (slot == own || __atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) == 0)
            continue;
        if (lock_byte(F_OFD_GETLK, HM_LOCK_SLOTS + (off_t)i, F_WRLCK, &lock) == 0 &&
            lock.l_type == F_UNLCK)
            clear_slot(slot);
    }
    hm_ledger_unlock();
}

static void
fill_slot(struct hm_slot *slot)
{
    struct stat status;

    clear_slot(slot);
    slot->pid = (uint32_t)getpid();
    slot->pid_ns = stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
    memset(slot->command, 0, sizeof(slot->command));
    prctl(PR_GET_NAME, slot->command); /* at most 16 bytes with the NUL */
    __atomic_store_n(&slot->taken, 1,
                     __ATOMIC_RELEASE); /* pairs with the acquire of whoever sums over slots */
}

static struct hm_slot *
claim_slot(void)
{
    for (uint32_t i = 0; i < HM_SLOTS; i++) {
        if (lock_byte(F_OFD_SETLK, HM_LOCK_SLOTS + (off_t)i, F_WRLCK, NULL) != 0)
            continue; /* its owner lives */
        fill_slot(&hm_tenant.usage->slot[i]);
        if (i >= hm_slots())
            __atomic_store_n(&hm_tenant.usage->high_slot, i + 1, __ATOMIC_RELEASE);
        return &hm_tenant.usage->slot[i];
    }
    hm_log_once("this tenant already has %d processes that use the GPU; this one can't allocate",
                HM_SLOTS);
    return NULL;
}

struct hm_slot *
hm_slot(void)
{
    struct hm_slot *slot = __atomic_load_n(&own, __ATOMIC_ACQUIRE);

    if (HM_LIKELY(slot != NULL))
        return slot;
    if (!hm_ledger_lock())
        return NULL;
    if (own == NULL && usage_fd >= 0)
        __atomic_store_n(&own, claim_slot(), __ATOMIC_RELEASE); /* pairs with the acquire above */
    slot = own;
    hm_ledger_unlock();
    return slot;
}

void
hm_region_before_fork(void)
{
    pthread_mutex_lock(&mutex);
}

void
hm_region_after_fork_parent(void)
{
    pthread_mutex_unlock(&mutex);
}

/* The locks belong to the parent's open file. Close our copy of it, so that they end with the parent. */
void
hm_region_after_fork_child(void)
{
    if (usage_fd_is_ours())
        close(usage_fd);
    usage_fd = -1;
    own = NULL;
    pthread_mutex_unlock(&mutex);
}
