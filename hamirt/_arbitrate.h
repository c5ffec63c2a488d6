/*
 * The supervisor's native thread, for Python: hm_arbiter_run sleeps and arbitrates until hm_arbiter_stop; all others may be
 * called meanwhile.
 */
#pragma once
#include "arbiter.h"

struct hm_arbiter;

/* One for the process. NULL: no memory. */
struct hm_arbiter *hm_arbiter_new(void);
/* A tenant, by an id of the caller's; its devices are these cards of the node, -1 for one that is not there. The descriptors
   stay the caller's. 0 or -errno. */
int hm_arbiter_add(struct hm_arbiter *arbiter, uint64_t id, int limits_fd, int usage_fd,
                   const int *cards, int count);
void hm_arbiter_remove(struct hm_arbiter *arbiter, uint64_t id);
/* Its limits were changed, or its lease is valid again. */
void hm_arbiter_changed(struct hm_arbiter *arbiter, uint64_t id);
/* It truncated its usage page. */
bool hm_arbiter_is_hostile(struct hm_arbiter *arbiter, uint64_t id);
/* When it last looked, CLOCK_MONOTONIC; it does so each second at least. */
uint64_t hm_arbiter_beat_ns(struct hm_arbiter *arbiter);
/* Time that went to changes from one tenant to the next on a card, ever. */
uint64_t hm_arbiter_handover_ns(struct hm_arbiter *arbiter, int card);
/* Its tenants do not take turns at present. */
bool hm_arbiter_is_open(struct hm_arbiter *arbiter, int card);
void hm_arbiter_run(struct hm_arbiter *arbiter);
void hm_arbiter_stop(struct hm_arbiter *arbiter);
