/*
 * The supervisor's native thread: it arbitrates all cards of the node (shim/arbiter.h), sleeping on the bells of all
 * tenants. Linked into hamirt._region; the only place where the supervisor maps a usage page, whose tenant may truncate it
 * at any moment: a SIGBUS handler then puts zeros there.
 */
#include "_arbitrate.h"

#include "futex.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CARDS 64
#define MAPPINGS 4096
#define WATCHES 128
#define BEAT_NS 1000000000 /* it shows that it lives so often at least, while there are tenants */

struct member { /* a tenant */
    uint64_t id;
    int usage_fd; /* our own */
    int mapping;  /* of its usage page */
    struct hm_limits *limits;
    struct hm_usage *usage;
    struct hm_party *parties;
    int count;
    struct member *next;
};

struct hm_arbiter {
    pthread_mutex_t mutex; /* not held while it sleeps */
    struct hm_card card[CARDS];
    struct member *members;
    uint32_t wake; /* futex word */
    bool stop;
    uint64_t beat_ns; /* atomic */
};

/* What the handler knows. Entries are written before their mapping is used. */
static struct {
    char *start; /* NULL: free; atomic */
    bool hostile;
} mappings[MAPPINGS];

static void
on_bus_error(int number, siginfo_t *info, void *unused)
{
    char *at = info->si_addr;

    (void)unused;
    for (int i = 0; i < MAPPINGS; i++) {
        char *start = __atomic_load_n(&mappings[i].start, __ATOMIC_ACQUIRE);

        if (start == NULL || at < start || at >= start + sizeof(struct hm_usage))
            continue;
        mappings[i].hostile = true;
        if (mmap(start, sizeof(struct hm_usage), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
            return;
    }
    signal(number, SIG_DFL); /* not ours: it happens again, and ends the process */
}

static int
note_mapping(char *start)
{
    for (int i = 0; i < MAPPINGS; i++) {
        if (mappings[i].start != NULL)
            continue;
        mappings[i].hostile = false;
        __atomic_store_n(&mappings[i].start, start, __ATOMIC_RELEASE);
        return i;
    }
    return -1;
}

static bool
slot_lives(void *of, int slot)
{
    const struct member *member = of;
    struct flock lock = {.l_type = F_WRLCK,
                         .l_whence = SEEK_SET,
                         .l_start = HM_LOCK_SLOTS + (off_t)slot,
                         .l_len = 1};

    return fcntl(member->usage_fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static void *
map(int fd, size_t size)
{
    struct stat status;
    void *page;

    if (fstat(fd, &status) != 0 || status.st_size < (off_t)size)
        return NULL;
    page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return page != MAP_FAILED ? page : NULL;
}

static void
forget(struct member *member)
{
    if (member->mapping >= 0)
        __atomic_store_n(&mappings[member->mapping].start, NULL, __ATOMIC_RELEASE);
    if (member->limits != NULL)
        munmap(member->limits, sizeof(struct hm_limits));
    if (member->usage != NULL)
        munmap(member->usage, sizeof(struct hm_usage));
    if (member->usage_fd >= 0)
        close(member->usage_fd);
    free(member->parties);
    free(member);
}

struct hm_arbiter *
hm_arbiter_new(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    struct hm_arbiter *arbiter = calloc(1, sizeof(*arbiter));

    if (arbiter == NULL)
        return NULL;
    pthread_mutex_init(&arbiter->mutex, NULL);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    return arbiter;
}

/* A ring through the tenant's cards in the order of their UUIDs, which is the order in which they stand in its page or not. */
static void
make_ring(struct member *member)
{
    for (int i = 0; i < member->count; i++)
        member->parties[i].gang = &member->parties[(i + 1) % member->count];
}

int
hm_arbiter_add(struct hm_arbiter *arbiter, uint64_t id, int limits_fd, int usage_fd,
               const int *cards, int count)
{
    struct member *member = calloc(1, sizeof(*member));
    uint64_t now_ns = hm_now_ns();

    if (member == NULL || count < 0 || count > HM_DEVICES) {
        free(member);
        return -EINVAL;
    }
    *member = (struct member){.id = id, .mapping = -1, .count = count};
    member->usage_fd = fcntl(usage_fd, F_DUPFD_CLOEXEC, 0);
    member->limits = map(limits_fd, sizeof(struct hm_limits));
    member->usage = map(usage_fd, sizeof(struct hm_usage));
    member->parties = calloc((size_t)count + 1, sizeof(*member->parties));
    if (member->usage != NULL)
        member->mapping = note_mapping((char *)member->usage);
    if (member->usage_fd < 0 || member->limits == NULL || member->mapping < 0 ||
        member->parties == NULL) {
        forget(member);
        return -ENOMEM;
    }
    pthread_mutex_lock(&arbiter->mutex);
    for (int i = 0; i < count; i++)
        member->parties[i] = (struct hm_party){.gate = &member->limits->device[i].gate,
                                               .limit = &member->limits->device[i],
                                               .usage = member->usage,
                                               .device = i,
                                               .lives = slot_lives,
                                               .lives_of = member};
    make_ring(member);
    for (int i = 0; i < count; i++)
        if (cards[i] >= 0 && cards[i] < CARDS)
            hm_card_add(&arbiter->card[cards[i]], &member->parties[i], now_ns);
    member->next = arbiter->members;
    arbiter->members = member;
    pthread_mutex_unlock(&arbiter->mutex);
    hm_futex_ring(&arbiter->wake);
    hm_futex_wake(&member->limits->epoch); /* its processes look who arbitrates */
    return 0;
}

static struct member *
find(struct hm_arbiter *arbiter, uint64_t id)
{
    struct member *member = arbiter->members;

    while (member != NULL && member->id != id)
        member = member->next;
    return member;
}

void
hm_arbiter_remove(struct hm_arbiter *arbiter, uint64_t id)
{
    struct member **link = &arbiter->members, *member;

    pthread_mutex_lock(&arbiter->mutex);
    while (*link != NULL && (*link)->id != id)
        link = &(*link)->next;
    member = *link;
    if (member != NULL) {
        *link = member->next;
        for (int i = 0; i < member->count; i++)
            if (member->parties[i].card != NULL)
                hm_card_remove(member->parties[i].card, &member->parties[i]);
        forget(member);
    }
    pthread_mutex_unlock(&arbiter->mutex);
    hm_futex_ring(&arbiter->wake);
}

void
hm_arbiter_changed(struct hm_arbiter *arbiter, uint64_t id)
{
    struct member *member;

    pthread_mutex_lock(&arbiter->mutex);
    member = find(arbiter, id);
    if (member != NULL)
        hm_futex_wake(&member->limits->epoch);
    pthread_mutex_unlock(&arbiter->mutex);
    hm_futex_ring(&arbiter->wake);
}

bool
hm_arbiter_is_hostile(struct hm_arbiter *arbiter, uint64_t id)
{
    const struct member *member;
    bool hostile;

    pthread_mutex_lock(&arbiter->mutex);
    member = find(arbiter, id);
    hostile = member != NULL && mappings[member->mapping].hostile;
    pthread_mutex_unlock(&arbiter->mutex);
    return hostile;
}

uint64_t
hm_arbiter_beat_ns(struct hm_arbiter *arbiter)
{
    return __atomic_load_n(&arbiter->beat_ns, __ATOMIC_ACQUIRE);
}

uint64_t
hm_arbiter_handover_ns(struct hm_arbiter *arbiter, int card)
{
    uint64_t ns;

    pthread_mutex_lock(&arbiter->mutex);
    ns = card >= 0 && card < CARDS ? arbiter->card[card].handover_ns : 0;
    pthread_mutex_unlock(&arbiter->mutex);
    return ns;
}

bool
hm_arbiter_is_open(struct hm_arbiter *arbiter, int card)
{
    bool open;

    pthread_mutex_lock(&arbiter->mutex);
    open = card >= 0 && card < CARDS && arbiter->card[card].state == HM_CARD_OPEN;
    pthread_mutex_unlock(&arbiter->mutex);
    return open;
}

void
hm_arbiter_stop(struct hm_arbiter *arbiter)
{
    __atomic_store_n(&arbiter->stop, true, __ATOMIC_RELEASE);
    hm_futex_ring(&arbiter->wake);
}

/* What to sleep on: our own word first, then a bell for each tenant. */
static int
list_bells(struct hm_arbiter *arbiter, struct hm_watch *watches)
{
    int count = 1;

    watches[0] =
        (struct hm_watch){&arbiter->wake, __atomic_load_n(&arbiter->wake, __ATOMIC_SEQ_CST)};
    for (const struct member *member = arbiter->members; member != NULL && count < WATCHES;
         member = member->next)
        watches[count++] = (struct hm_watch){
            &member->usage->bell, __atomic_load_n(&member->usage->bell, __ATOMIC_SEQ_CST)};
    return count;
}

void
hm_arbiter_run(struct hm_arbiter *arbiter)
{
    bool may_spin = hm_may_spin();
    struct hm_watch watches[WATCHES];

    prctl(PR_SET_NAME, "hamirt-arbiter");
    prctl(PR_SET_TIMERSLACK, 1UL);
    while (!__atomic_load_n(&arbiter->stop, __ATOMIC_ACQUIRE)) {
        uint64_t now_ns, next = UINT64_MAX;
        int64_t nap = BEAT_NS;
        bool hurries = false;
        int count;

        pthread_mutex_lock(&arbiter->mutex);
        count = list_bells(arbiter, watches);
        now_ns = hm_now_ns();
        for (int i = 0; i < CARDS; i++) {
            uint64_t due =
                arbiter->card[i].count > 0 ? hm_card_step(&arbiter->card[i], now_ns) : UINT64_MAX;

            next = due < next ? due : next;
            hurries |= hm_card_hurries(&arbiter->card[i], now_ns);
        }
        pthread_mutex_unlock(&arbiter->mutex);
        __atomic_store_n(&arbiter->beat_ns, now_ns, __ATOMIC_RELEASE);
        if (next != UINT64_MAX)
            nap = next > now_ns ? (int64_t)(next - now_ns) : 0;
        if (!hurries || !may_spin)
            hm_futex_wait_any(watches, count, nap < BEAT_NS ? nap : BEAT_NS);
    }
}
