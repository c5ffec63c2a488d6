/*
 * The two shared pages of a tenant: the layout for C and, through cffi's cdef, for Python.
 *
 * Only plain C that cdef understands: fixed-width integers, enums and `#define NAME number`. Every field that more
 * than one process touches is naturally aligned and accessed with __atomic builtins. Nobody trusts the usage page.
 */
#pragma once
#include <stdint.h>

#define HM_LIMITS_MAGIC 0x31746d696c6d6168 /* "hamlimt1" */
#define HM_USAGE_MAGIC 0x3165676173756d68  /* "hmusage1" */
#define HM_VERSION 4                       /* of both pages; another version is refused */
#define HM_DEVICES 16                      /* devices of one tenant */
#define HM_SLOTS 512                       /* living processes of one tenant that use CUDA */
#define HM_UUID_BYTES 48                   /* "GPU-" and 36 characters, zero padded */
#define HM_TENANT_BYTES 64
#define HM_COMMAND_BYTES 16

#define HM_UNIT_BYTES 512         /* the unit of the grant word: no allocation is smaller */
#define HM_BLOCK_BYTES 2097152    /* what the driver takes from the card at a time */
#define HM_RESERVE_BYTES 33554432 /* kept back under every cap for modules loaded inside launches */
#define HM_NEAR_BYTES 268435456   /* closer to the cap than this, NVML is asked before a grant */
#define HM_CONTEXT_BYTES 671088640 /* a context's size before any was measured */

/* What an allocated byte is; the index of hm_use.kind_bytes. */
enum hm_kind {
    HM_LINEAR,   /* cuMemAlloc, pitch */
    HM_MANAGED,  /* cuMemAllocManaged */
    HM_POOL,     /* stream-ordered pools, what they hold reserved */
    HM_VIRTUAL,  /* cuMemCreate */
    HM_ARRAY,    /* arrays and mipmapped arrays */
    HM_GRAPH,    /* memory nodes of graphs, what the device's graph pool holds */
    HM_EXTERNAL, /* imported external memory */
    HM_KINDS
};

enum hm_near {
    HM_FAR,   /* more than HM_NEAR_BYTES were left at the last look */
    HM_NEAR,  /* less */
    HM_DOUBT, /* a process went that may have left memory to others */
};

enum hm_on_error { HM_DENY, HM_ALLOW };

/* Whose work on the card comes first. */
enum hm_class { HM_NORMAL, HM_LATENCY, HM_BATCH };

/* The low two bits of hm_gate.word; the rest is the number of the slot. */
enum hm_gate_state {
    HM_GATE_CLOSED, /* launches wait */
    HM_GATE_WINDOWED, /* launches pass, at most hm_gate.window_ns of predicted GPU time ahead of the card */
    HM_GATE_FREE, /* launches pass, unmetered */
};
#define HM_GATE_STATES 3 /* the mask */
#define HM_GATE_SLOT 4   /* one slot on */

/* Buckets of hm_usage_device.waits: bucket i counts waits under 2^i us, the last all that are longer. */
#define HM_WAITS 24

/* Bytes of the usage file that carry OFD locks (they lie beyond its data): the ledger's, then one for each slot. */
#define HM_LOCK_LEDGER 1073741824
#define HM_LOCK_SLOTS 1073741825

/*
 * One tenant's gate to one device, with what its arbiter has to remember, so that the next one can go on. One writer: the
 * arbiter, which is the supervisor (in the limits page) or, without one, a process of the tenant (in the usage page).
 */
struct hm_gate {
    uint32_t word;      /* futex: slot number * HM_GATE_SLOT | enum hm_gate_state */
    uint32_t window_ns; /* predicted GPU time that each process may have in flight while windowed */
    uint64_t charged_ns;       /* GPU time possessed while metered, ever */
    uint64_t charged_until_ns; /* CLOCK_MONOTONIC up to which work was charged */
    int64_t credit_ns;         /* of a capped tenant: GPU time it may still take; below 0 is debt */
    uint64_t credited_ns;      /* CLOCK_MONOTONIC up to which credit was given */
    int64_t virtual_ns; /* weighted fair queueing: charged / weight, from where it last joined in */
    uint64_t free_ns;   /* time with the gate free, ever: GPU time was not metered then */
    uint32_t slots;     /* handed out, ever */
    uint32_t misses;    /* slots whose work did not end in time, ever */
    uint32_t unpreemptible; /* 1: so many of them of late that its neighbours suffer */
    uint32_t
        leader; /* of the usage page: 1 + index of the slot whose process arbitrates, 0: none */
    uint64_t lease_ns; /* of the usage page: CLOCK_MONOTONIC until which the leader is one */
    uint64_t
        ends_ns; /* CLOCK_MONOTONIC at which the slot ends, so that the window reaches until then; 0: it does not */
};

struct hm_limit {
    char uuid[HM_UUID_BYTES]; /* as NVML prints it */
    uint64_t memory_bytes;    /* cap on the footprint; 0: uncapped */
    uint64_t card_bytes;      /* the card's total memory by NVML */
    uint64_t
        context_bytes; /* the last measured context of this driver and card; 0: never measured */
    uint32_t time_percent;  /* cap on GPU time; 0: uncapped */
    uint32_t weight;        /* share of what is contended, relative to other tenants' */
    uint32_t latency_class; /* enum hm_class */
    uint32_t unused;
    struct hm_gate gate; /* the supervisor's */
};

/* ro/limits. One writer: the supervisor, or without one `hamirt run` before the program starts. */
struct hm_limits {
    uint64_t magic;
    uint32_t version;
    uint32_t size;         /* sizeof(struct hm_limits) */
    uint32_t epoch;        /* raised after each change */
    uint32_t on_error;     /* enum hm_on_error */
    uint32_t device_count; /* valid entries of device[] */
    uint32_t
        node_devices; /* devices of the node; equal to device_count: CUDA_VISIBLE_DEVICES is left alone */
    uint64_t
        lease_ns; /* CLOCK_MONOTONIC until which a supervisor answers for this page; 0: there is none */
    uint32_t
        measure; /* raised, and hm_usage.trim woken, when NVML says something else than the ledger */
    uint32_t unused;
    char tenant[HM_TENANT_BYTES];
    struct hm_limit device[HM_DEVICES]; /* in nvidia-smi's order on the node */
};

/*
 * One process's use of one device. Charged to the tenant are used + overhead of the living, and what a process imported
 * from one that gave it up since (ledger.c). used is what its allocations hold, calls in flight included. used <= granted
 * always, both in HM_UNIT_BYTES, in one word so that they change together.
 */
struct hm_use {
    uint64_t
        grant; /* granted << 32 | used. The owner moves used up to granted without a lock; granted
                                      is raised by the owner and lowered by anybody, under the ledger lock */
    uint64_t asked_bytes; /* ever asked of the grant, raised before used is; the owner */
    uint64_t
        answered_bytes; /* of these, what was taken or refused, raised after used is; the owner */
    uint64_t overhead_bytes; /* contexts, modules, local memory; written under the ledger lock */
    uint64_t
        ahead_bytes; /* part of it that is reserved and was not yet seen on the card; as above */
    uint64_t exported_bytes; /* part of used that was exported to other processes; the owner */
    uint64_t imported_bytes; /* held here, used by whoever exported it; the owner */
    uint64_t kind_bytes[HM_KINDS]; /* used by kind; the owner */
    uint64_t denials;              /* requests refused; the owner */
    uint64_t throttled_ns;         /* how long launches were held back; the owner */
    uint64_t launches;             /* that passed the gate while it was not free; the owner */
    uint64_t bus_bytes;            /* copied over the bus, both ways; the owner */
    uint64_t
        busy_since_ns; /* when the card began with what is outstanding; 0: not known yet; the owner */
    uint64_t idle_since_ns; /* when the last work had ended; the owner */
    uint64_t longest_ns;    /* the longest that one launch was seen to take; the owner */
    uint32_t busy;    /* 1: work is outstanding, or ended a moment ago; the owner, while windowed */
    uint32_t entered; /* the number of the last slot it launched in; the owner */
    uint32_t drained; /* the number of the last slot all of whose work has ended; the owner */
    uint32_t waiting; /* threads that wait for the gate to open; the owner */
    uint32_t beats;   /* raised by a thread that waits whenever it looks; the owner */
    uint32_t collectives; /* launched, ever; the owner */
    uint32_t contexts;    /* living contexts; the owner */
    uint32_t
        worked_us; /* how long the card was seen at work for it while not free, ever, modulo 2^32; the owner */
};

/* One process. It lives while its owner holds the OFD lock on byte HM_LOCK_SLOTS + index. */
struct hm_slot {
    uint32_t
        taken; /* 1 from the claim until it is cleared by its owner or, once dead, by whoever reaps it */
    uint32_t pid;    /* as the owner sees itself */
    uint64_t pid_ns; /* inode of the owner's PID namespace */
    char command[HM_COMMAND_BYTES];
    struct hm_use use[HM_DEVICES];
};

struct hm_usage_device {
    uint64_t context_bytes; /* the last context measured here; 0: none */
    uint32_t estimated; /* 1: NVML does not show our processes, so overhead is what was predicted */
    uint32_t near;      /* enum hm_near: when a grant has to ask NVML first */
    uint32_t
        ganged; /* 1: its processes wait for each other on the card, so that all its devices go together */
    uint32_t unused;
    uint64_t waits[HM_WAITS]; /* waits for the gate by length, ever; any process adds */
    struct hm_gate gate;      /* without a supervisor */
};

/* rw/usage. One writer: the tenant's shims. */
struct hm_usage {
    uint64_t magic;
    uint32_t version;
    uint32_t size;      /* sizeof(struct hm_usage) */
    uint32_t high_slot; /* no slot at or above this index was ever taken */
    uint32_t
        trim; /* futex word, raised when a process needs what the pools of the others hold unused */
    uint32_t bell; /* futex word, raised when the arbiter has something to look at */
    uint32_t unused;
    struct hm_usage_device device[HM_DEVICES];
    struct hm_slot slot[HM_SLOTS];
};
