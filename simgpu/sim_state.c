#include "sim_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim_card.h"
#include "sim_path.h"

#define STATE_MAGIC 0x756770736d696168ull
#define CARD_MIB 81559
#define CARD_RESERVED_MIB 551
#define PATH_BYTES 4096

struct hm_local hm_local = {.fd = -1, .slot = -1};

static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

static void
card_create(struct hm_card *card)
{
    uint64_t mib = hm_env_number("HAMIRT_SIM_MEM_MIB", CARD_MIB);

    card->total_bytes = mib * HM_MIB;
    card->blocks_total = hm_blocks((mib - mib * CARD_RESERVED_MIB / CARD_MIB) * HM_MIB);
    if (card->blocks_total * HM_BLOCK_BYTES > card->total_bytes)
        card->blocks_total--;
    card->reserved_bytes = card->total_bytes - card->blocks_total * HM_BLOCK_BYTES;
    hm_engine_reset(&card->engine, 0);
}

static void
state_create(struct hm_state *state)
{
    uint64_t cards = hm_env_number("HAMIRT_SIM", 1);
    pthread_mutexattr_t attributes;

    state->version = HM_STATE_VERSION;
    state->size = sizeof(*state);
    state->cards = cards < 1 ? 1 : cards > HM_CARDS_MAX ? HM_CARDS_MAX : (uint32_t)cards;
    for (uint32_t i = 0; i < state->cards; i++)
        card_create(&state->card[i]);

    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&state->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    state->magic = STATE_MAGIC;
}

static struct hm_state *
state_map(int fd)
{
    void *map = mmap(NULL, sizeof(struct hm_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    return map == MAP_FAILED ? NULL : map;
}

/* Fills a file beside the final one and links it there complete: no process sees a half-made state.
 * A loser of the race finds the name taken and opens the winner's. */
static void
file_create(const char *path)
{
    char draft[PATH_BYTES + 32];
    struct hm_state *state;
    int fd;

    snprintf(draft, sizeof(draft), "%s.XXXXXX", path);
    fd = mkostemp(draft, O_CLOEXEC);
    if (fd < 0)
        return;
    if (fchmod(fd, 0666) == 0 && ftruncate(fd, sizeof(*state)) == 0) {
        state = state_map(fd);
        if (state != NULL) {
            state_create(state);
            munmap(state, sizeof(*state));
            (void)!link(draft, path);
        }
    }
    unlink(draft);
    close(fd);
}

static const char *
state_open(void)
{
    char path[PATH_BYTES];
    struct stat status;
    struct hm_state *state;
    int fd;

    if (!hm_path_state(path, sizeof(path)))
        return "its folder can't be made";
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        file_create(path);
        fd = open(path, O_RDWR | O_CLOEXEC);
    }
    if (fd < 0)
        return strerror(errno);
    if (fstat(fd, &status) != 0 || status.st_size != sizeof(struct hm_state)) {
        close(fd);
        return "it has another size (another version?); remove it";
    }
    state = state_map(fd);
    if (state == NULL || state->magic != STATE_MAGIC || state->version != HM_STATE_VERSION) {
        close(fd);
        return "it is no state of this version; remove it";
    }
    hm_local.state = state;
    hm_local.fd = fd;
    return NULL;
}

struct hm_state *
hm_state(void)
{
    static bool tried;

    pthread_mutex_lock(&opening);
    if (!tried) {
        const char *problem = state_open();

        tried = true;
        if (problem != NULL)
            fprintf(stderr, "simgpu: no state file: %s\n", problem);
    }
    pthread_mutex_unlock(&opening);
    return hm_local.state;
}

void
hm_state_fork_child(void)
{
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;

    opening = fresh;
}

/* The last owner was killed between two writes: believe the records, recompute the sums. */
static void
state_repair(struct hm_state *state)
{
    for (uint32_t i = 0; i < state->cards; i++) {
        hm_card_recount(i);
        hm_engine_repair(&state->card[i].engine);
    }
}

void
hm_state_lock(void)
{
    struct hm_state *state = hm_local.state;

    if (pthread_mutex_lock(&state->lock) == EOWNERDEAD) {
        pthread_mutex_consistent(&state->lock);
        state_repair(state);
    }
}

void
hm_state_unlock(void)
{
    pthread_mutex_unlock(&hm_local.state->lock);
}
