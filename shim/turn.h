/*
 * A tenant on a card as the arbiter sees it, and whose turn it is. What arbiter.c, party.c and turn.c share; arbiter.h is for
 * whoever runs an arbiter.
 */
#pragma once
#include "arbiter.h"
#include "futex.h"

#define HM_FULL_WEIGHT 100
#define HM_SLOT_NS (20 * HM_MS)
#define HM_LEAST_SLOT_NS (2 * HM_MS)
#define HM_UNUSED_NS (5 * HM_MS) /* who asked for the card and does not launch loses it */

static inline uint32_t
hm_load(const uint32_t *word)
{
    return __atomic_load_n(
        word, __ATOMIC_SEQ_CST); /* partner: gate.c publishes before it looks at the gate */
}

static inline uint32_t
hm_party_percent(const struct hm_party *party)
{
    uint32_t percent = __atomic_load_n(&party->limit->time_percent, __ATOMIC_RELAXED);

    return percent > 0 && percent < 100 ? percent : 100;
}

static inline bool
hm_party_is_capped(const struct hm_party *party)
{
    return hm_party_percent(party) < 100;
}

static inline uint32_t
hm_party_weight(const struct hm_party *party)
{
    uint32_t weight = __atomic_load_n(&party->limit->weight, __ATOMIC_RELAXED);

    return weight > 0 ? weight : HM_FULL_WEIGHT;
}

static inline bool
hm_party_is_latency(const struct hm_party *party)
{
    return __atomic_load_n(&party->limit->latency_class, __ATOMIC_RELAXED) == HM_LATENCY;
}

static inline bool
hm_party_is_batch(const struct hm_party *party)
{
    return __atomic_load_n(&party->limit->latency_class, __ATOMIC_RELAXED) == HM_BATCH;
}

static inline enum hm_gate_state
hm_party_state(const struct hm_party *party)
{
    return (enum hm_gate_state)(party->gate->word & HM_GATE_STATES);
}

static inline uint32_t
hm_party_slot(const struct hm_party *party)
{
    return party->gate->word / HM_GATE_SLOT;
}

static inline uint32_t
hm_party_next_slot(const struct hm_party *party)
{
    return (hm_party_slot(party) + 1) & (UINT32_MAX / HM_GATE_SLOT);
}

/* party.c: read the usage page: what the tenant's processes say. */
void hm_party_look(struct hm_party *party);
/* party.c: those that owe us an answer and are dead don't any more; with `all`, nor do those that may be stopped. */
void hm_party_excuse(struct hm_party *party, bool all);
/* party.c: charge GPU time, or (below 0) give some back. */
void hm_party_charge(struct hm_party *party, int64_t ns);
/* party.c: charge the time with work outstanding since the last charge. */
void hm_party_account(struct hm_party *party, uint64_t now_ns);
/* party.c: give a capped tenant its credit for the time since it last got some. worked: it had the card all along. */
void hm_party_credit(struct hm_party *party, bool worked, uint64_t now_ns);
/* party.c: it is not at rest for want of credit. */
bool hm_party_may_open(const struct hm_party *party);
/* party.c: when a capped tenant that waits will have its credit; UINT64_MAX: it is not that it lacks. */
uint64_t hm_party_opens_ns(const struct hm_party *party, uint64_t now_ns);

/* turn.c: the same tenant on its next card; those that are not there are left out. */
struct hm_party *hm_gang_next(const struct hm_party *party);
/* turn.c: the gang possesses or reserves a card if this says so of each; a tenant on one card is a gang of one. */
bool hm_gang_is(const struct hm_party *party, enum hm_card_state state);

/* turn.c: another tenant wants the card, and may have it. */
bool hm_turn_claimed(const struct hm_card *card);
/* turn.c: 0 is served first. */
int hm_turn_rank(const struct hm_card *card, const struct hm_party *party, uint64_t now_ns);
/* turn.c: who is next; NULL: nobody wants the card. */
struct hm_party *hm_turn_choose(struct hm_card *card, uint64_t now_ns);
/* turn.c: when the next of those that wait for credit has it. */
uint64_t hm_turn_opening_ns(const struct hm_card *card, uint64_t now_ns);
/* turn.c: when the holder's slot has to end, as things are now. */
uint64_t hm_turn_end_ns(struct hm_card *card, uint64_t now_ns);
/* turn.c: it wants the card, or has it: it has a place in the queue. */
void hm_turn_join(struct hm_card *card, struct hm_party *party, uint64_t now_ns);
/* turn.c: another tenant wants the card, had it or wanted it of late: its gate is not free. */
uint64_t hm_turn_contended_until_ns(const struct hm_party *party);
/* turn.c: the queue is where the holder is. */
void hm_turn_advance(struct hm_card *card);
