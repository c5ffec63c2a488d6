/*
 * The one table behind every handle an application holds. A handle is a number, never an address: a
 * destroyed or foreign one is recognized, not followed.
 */
#pragma once

#include "cuda_driver.h"

enum hm_kind {
    HM_CONTEXT = 1,
    HM_STREAM,
    HM_EVENT,
    HM_MODULE,
    HM_FUNCTION,
    HM_LIBRARY,
    HM_KERNEL,
    HM_LINK,
    HM_POOL,
    HM_PHYSICAL,
    HM_ARRAY,
    HM_MIPMAP,
    HM_EXTERNAL,
    HM_GRAPH,
    HM_NODE,
    HM_EXEC,
};

/* `owner` is the context that takes the object with it when it is destroyed, or NULL. */
uint64_t hm_handle_make(enum hm_kind kind, void *object, struct hm_context *owner);
/* Nothing happens for a handle that is not in the table, e.g. the legacy stream's. */
void hm_handle_drop(uint64_t handle);
/* The object, or NULL when the handle is not a living one of that kind. */
void *hm_handle_object(enum hm_kind kind, uint64_t handle);
/* Any object of that kind and owner, or NULL: for taking them apart one by one. */
void *hm_handle_any(enum hm_kind kind, const struct hm_context *owner);

#define HM_HANDLE(kind, handle) hm_handle_object(kind, (uint64_t)(uintptr_t)(handle))
