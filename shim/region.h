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
#define HM_VERSION 2                       /* of both pages; another version is refused */
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

/* Bytes of the usage file that carry OFD locks (they lie beyond its data): the ledger's, then one for each slot. */
#define HM_LOCK_LEDGER 1073741824
#define HM_LOCK_SLOTS 1073741825

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
    uint32_t contexts;             /* living contexts; the owner */
    uint32_t unused;
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
};

/* rw/usage. One writer: the tenant's shims. */
struct hm_usage {
    uint64_t magic;
    uint32_t version;
    uint32_t size;      /* sizeof(struct hm_usage) */
    uint32_t high_slot; /* no slot at or above this index was ever taken */
    uint32_t
        trim; /* futex word, raised when a process needs what the pools of the others hold unused */
    struct hm_usage_device device[HM_DEVICES];
    struct hm_slot slot[HM_SLOTS];
};
