/*
 * What a hook does with memory: reserve, call, settle; and remember what a handle or pointer was charged, so that its
 * free gives back just that.
 */
#pragma once
#include "tenant.h"

/* The driver takes memory from the card in blocks. */
static inline uint64_t
hm_whole_blocks(uint64_t bytes)
{
    return bytes > UINT64_MAX - HM_BLOCK_BYTES
               ? bytes
               : (bytes + HM_BLOCK_BYTES - 1) / HM_BLOCK_BYTES * HM_BLOCK_BYTES;
}

/* Bytes reserved for one call in flight. device -1: nothing is charged (no tenant, or not its device). */
struct hm_charge {
    int device;
    enum hm_kind kind; /* HM_KINDS: what becomes part of another charge (hm_quota_join) */
    uint64_t bytes;    /* as charged: whole HM_UNIT_BYTES */
    bool in_flight;    /* the driver call it belongs to has not been settled */
};

/* What was charged for a living object of the driver. */
enum hm_type {
    HM_POINTER = 1,
    HM_CONTEXT,
    HM_ARRAY_HANDLE,
    HM_MIPMAP,
    HM_GRAPH_EXEC,
    HM_EXTERNAL_HANDLE,
    HM_MODULE,
    HM_LIBRARY,
};

struct hm_object {
    uint64_t key; /* the handle or pointer */
    enum hm_type type;
    struct hm_charge charge;
    CUcontext context; /* the one it dies with; NULL: outlives contexts */
    uint64_t value;    /* free for the hook file that owns the type */
};

/*
 * Reserve bytes on a device of the tenant, for a call that is about to be made. Waits up to 20 ms for pools to be
 * trimmed. False: refused, counted and logged; the hook answers CUDA_ERROR_OUT_OF_MEMORY.
 */
bool hm_quota_reserve(struct hm_charge *charge, enum hm_kind kind, int device, uint64_t bytes);

/* Like hm_quota_reserve but without trimming, waiting, counting or logging: for guesses. */
bool hm_quota_try(struct hm_charge *charge, enum hm_kind kind, int device, uint64_t bytes);

/* Change what is charged to bytes, when the driver took more or less than asked. Never refused: it has happened. */
void hm_quota_adjust(struct hm_charge *charge, uint64_t bytes);

/* Make the bytes of one charge part of another of the same device. The call in flight goes on. */
void hm_quota_join(struct hm_charge *into, struct hm_charge *charge);

/* The call failed, or the memory is free again: give the charge back. */
void hm_quota_release(const struct hm_charge *charge);

/* The call in flight is over; the charge stays. Pairs with a successful reserve that is not released. */
void hm_quota_done(struct hm_charge *charge);

/* True if no call of this process is in flight on the device. */
bool hm_quota_quiet(int device);

/*
 * Settle the call: on success remember the charge under (type, key), otherwise give it back. Returns result. The usual
 * last line of an allocating hook. dies_with_context: the object goes when the current context does.
 */
CUresult hm_quota_settle(struct hm_charge *charge, enum hm_type type, uint64_t key,
                         bool dies_with_context, CUresult result);

/* A request is refused elsewhere than in hm_quota_reserve: count and log it. */
void hm_quota_refused(int device, uint64_t bytes);

/* object.c. put copies; take removes and copies out, false if unknown; look copies only. */
bool hm_object_put(const struct hm_object *object);
bool hm_object_take(enum hm_type type, uint64_t key, struct hm_object *object);
bool hm_object_look(enum hm_type type, uint64_t key, struct hm_object *object);

/* Run change(object, argument) on a living object under its lock. False: unknown. */
bool hm_object_change(enum hm_type type, uint64_t key, void (*change)(struct hm_object *, void *),
                      void *argument);

/*
 * A hook that frees: take the object first (another thread may get the same address back at once), call the driver,
 * then give the charge back, or the object if the driver refused. Returns result.
 *
 *     bool known = hm_object_take(HM_POINTER, dptr, &object);
 *     return hm_object_freed(known, &object, REAL(cuMemFree_v2(dptr)));
 */
CUresult hm_object_freed(bool known, const struct hm_object *object, CUresult result);

/* The context is gone, and with it what died with it. */
void hm_object_purge(CUcontext context);

/* For pthread_atfork: locks before, and in the child everything is forgotten. */
void hm_object_before_fork(void);
void hm_object_after_fork(bool child);

/* The memory of a settled charge is about to be freed: a call in flight again. For hm_object_take. */
void hm_quota_begin(struct hm_charge *charge);
