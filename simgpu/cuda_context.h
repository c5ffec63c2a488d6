/* Contexts: their overhead on the card, the calling thread's stack of them, their channel. */
#pragma once

#include "cuda_driver.h"

struct hm_slab;
struct hm_stream;
struct hm_record;

#define HM_LIMITS 16

struct hm_context {
    CUcontext handle;
    uint64_t id;
    CUdevice device;
    uint32_t card;
    unsigned int flags;
    unsigned int retained; /* primary context: how often */
    CUresult broken;       /* a sticky error, e.g. an illegal address */
    int channel;           /* in the card's engine */
    uint64_t blocks;       /* overhead of the context itself */
    uint64_t limit_blocks; /* and of its limits and local memory */
    size_t limits[HM_LIMITS];
    CUfunc_cache cache;
    uint64_t peers; /* bit per card: peer access enabled */
    struct hm_slab *slabs;
    struct hm_stream *streams;    /* of every kind */
    struct hm_record *unresolved; /* records whose moment is still to come, by position */
    struct hm_record *unresolved_last;
};

/* The living context of that handle, or NULL. */
struct hm_context *hm_context_find(CUcontext handle);
struct hm_context *hm_context_current(void);

CUresult hm_context_new(CUdevice device, unsigned int flags, struct hm_context **ctx);
void hm_context_delete(struct hm_context *ctx);

/* The primary context of a device if it is active, or NULL. */
struct hm_context *hm_primary(CUdevice device);
/* The same, made when missing. */
CUresult hm_primary_need(CUdevice device, struct hm_context **ctx);

/* Makes the overhead of the limits what they and `local_bytes` ask for. */
CUresult hm_context_fit_limits(struct hm_context *ctx);
void hm_context_default_limits(struct hm_context *ctx);

void hm_context_push(struct hm_context *ctx);
