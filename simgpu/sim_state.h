/*
 * The state of the simulated machine: one file, mapped by every process that uses either library.
 *
 * Everything below `lock` is read and written holding it. The lock is robust: when its owner was
 * killed, the next one to take it recomputes the totals from the records (sim_state.c).
 */
#pragma once

#include "sim_common.h"

#include <pthread.h>
#include <stdatomic.h>

#include "sim_engine.h"

enum {
    HM_STATE_VERSION = 1,
    HM_CARDS_MAX = 16,
    HM_SLOTS = 256,
    HM_OBJECTS = 4096,
    HM_STUBS = 1024,
};

enum hm_lib { HM_LIBRARY_CUDA, HM_LIBRARY_NVML, HM_LIBRARIES };

/* A process that called cuInit. It lives while it holds the OFD lock on byte `index` of the file. */
struct hm_slot {
    uint32_t used;
    int32_t pid;         /* in its own PID namespace */
    uint64_t pid_ns;     /* inode of that namespace */
    uint64_t generation; /* tells a slot's successive owners apart */
    uint32_t contexts[HM_CARDS_MAX];
    uint64_t blocks[HM_CARDS_MAX];   /* private physical memory, shared objects not included */
    uint64_t unbilled[HM_CARDS_MAX]; /* of these, what NVML shows for no process: managed memory */
};

/* Physical memory that several processes can hold. `payer` is the one NVML shows it for:
   the one that made it, as long as it holds it; then, if there is just one, the one that still does (580). */
struct hm_object {
    uint64_t id; /* inode of the memfd that names it; 0: free */
    int32_t card;
    int32_t payer;
    uint64_t blocks;
    uint64_t holders[HM_SLOTS / 64];
};

struct hm_card {
    uint64_t total_bytes;    /* as nvidia-smi shows it */
    uint64_t reserved_bytes; /* taken by the driver, never available */
    uint64_t blocks_total;
    uint64_t blocks_used;
    struct hm_engine engine;
};

struct hm_state {
    uint64_t magic;
    uint32_t version;
    uint32_t cards;
    uint64_t size;
    pthread_mutex_t lock;
    uint64_t generation;
    _Atomic int64_t virtual_ns; /* not under the lock */
    struct hm_slot slots[HM_SLOTS];
    struct hm_object objects[HM_OBJECTS];
    _Atomic uint64_t stub_calls[HM_LIBRARIES][HM_STUBS]; /* not under the lock */
    struct hm_card card[HM_CARDS_MAX];
};

/* The mapped state, made when missing; NULL when it can't be had (one line on stderr says why). */
struct hm_state *hm_state(void);
/* In a fork child: another thread of the parent may have been opening the state. */
void hm_state_fork_child(void);
void hm_state_lock(void);
void hm_state_unlock(void);

/* The pid of a slot's process in our PID namespace; 0: it has none here. */
int32_t hm_process_pid(int slot);
/* Takes a slot for this process: its index, or -1. Afterwards only hm_process_forget() ends it. */
int hm_process_join(void);
/* This process's slot, or -1. */
int hm_process_slot(void);
/* In a fork child: the slot and its lock stay the parent's. */
void hm_process_forget(void);

/* With the lock held: frees what dead processes held. */
void hm_process_reap(void);
/* The same, but only so long after this process last did; for paths that are taken often. */
void hm_process_reap_every(int64_t ns);
