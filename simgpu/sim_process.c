#include "sim_internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim_card.h"
#include "sim_clock.h"

static bool
slot_lock(int slot, int command, struct flock *lock)
{
    *lock = (struct flock){
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = slot,
        .l_len = 1,
    };
    return fcntl(hm_local.fd, command, lock) == 0;
}

static bool
slot_dead(int slot)
{
    struct flock lock;

    return slot != hm_local.slot && slot_lock(slot, F_OFD_GETLK, &lock) && lock.l_type == F_UNLCK;
}

static void
slot_clear(int slot)
{
    struct hm_state *state = hm_local.state;

    for (uint32_t card = 0; card < state->cards; card++)
        hm_engine_drop_slot(&state->card[card].engine, slot);
    hm_card_drop_slot(slot);
    memset(&state->slots[slot], 0, sizeof(state->slots[slot]));
}

void
hm_process_reap(void)
{
    struct hm_state *state = hm_local.state;
    bool any = false;

    for (int slot = 0; slot < HM_SLOTS; slot++) {
        if (state->slots[slot].used != 0 && slot_dead(slot)) {
            slot_clear(slot);
            any = true;
        }
    }
    for (uint32_t card = 0; any && card < state->cards; card++)
        hm_card_recount(card);
}

void
hm_process_reap_every(int64_t ns)
{
    static int64_t last_ns;
    int64_t now = hm_clock_real_ns();

    if (now - last_ns < ns)
        return;
    last_ns = now;
    hm_process_reap();
}

static bool
alone(const struct hm_state *state)
{
    for (int slot = 0; slot < HM_SLOTS; slot++) {
        if (state->slots[slot].used != 0)
            return false;
    }
    return true;
}

static uint64_t
own_pid_ns(void)
{
    struct stat status;

    return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

/* A lock of the process's own kind: of those the kernel tells everybody the owner's pid as it is for them. */
static struct flock
pid_lock(int slot)
{
    return (struct flock){
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = HM_SLOTS + slot,
        .l_len = 1,
    };
}

int32_t
hm_process_pid(int slot)
{
    const struct hm_slot *process = &hm_local.state->slots[slot];
    struct flock lock = pid_lock(slot);

    if (process->pid_ns == own_pid_ns())
        return process->pid;
    return fcntl(hm_local.fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? lock.l_pid : 0;
}

static int
take_slot(struct hm_state *state)
{
    struct flock lock, pid;

    for (int slot = 0; slot < HM_SLOTS; slot++) {
        if (state->slots[slot].used != 0 || !slot_lock(slot, F_OFD_SETLK, &lock))
            continue;
        pid = pid_lock(slot);
        fcntl(hm_local.fd, F_SETLK, &pid);
        state->slots[slot] = (struct hm_slot){
            .used = 1,
            .pid = getpid(),
            .pid_ns = own_pid_ns(),
            .generation = ++state->generation,
        };
        return slot;
    }
    return -1;
}

int
hm_process_join(void)
{
    struct hm_state *state = hm_state();

    if (state == NULL)
        return -1;
    hm_state_lock();
    hm_process_reap();
    /* A state that outlived a reboot may be ahead of the clock. */
    for (uint32_t card = 0; alone(state) && card < state->cards; card++)
        hm_engine_reset(&state->card[card].engine, hm_clock_ns());
    hm_local.slot = take_slot(state);
    hm_state_unlock();
    return hm_local.slot;
}

int
hm_process_slot(void)
{
    return hm_local.slot;
}

void
hm_process_forget(void)
{
    if (hm_local.fd >= 0)
        close(hm_local.fd);
    hm_local.fd = -1;
    hm_local.slot = -1;
}
