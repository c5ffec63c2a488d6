/* Whose turn it is, and for how long: caps, classes, weights, gangs. */
#include "turn.h"

#include <string.h>

/* With many that want the card, slots get shorter, so that a turn does not take longer. */
#define ROUND_NS (80 * HM_MS)
#define IDLE_NS (300 * HM_US)    /* as HM_IDLE_NS of the shim */
#define STARVED_NS (400 * HM_MS) /* who waited so long is next, whatever the classes */
/* Beside the other classes batch has the shortest slot so often: a few percent, in parts that delay nobody for long. */
#define FLOOR_NS (80 * HM_MS)
#define HEAD_START_NS (20 * HM_MS)
#define CONTENDED_NS (500 * HM_MS)

/* Another tenant wants the card, and may have it. */
bool
hm_turn_claimed(const struct hm_card *card)
{
    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party != card->holder && party->wants && hm_party_may_open(party))
            return true;
    }
    return false;
}

/* The same tenant on its next card; those that are not there are left out. */
struct hm_party *
hm_gang_next(const struct hm_party *party)
{
    struct hm_party *at = party->gang;

    while (at->card == NULL)
        at = at->gang;
    return at;
}

/* The gang possesses or reserves a card if this says so of each; a tenant on one card is a gang of one. */
bool
hm_gang_is(const struct hm_party *party, enum hm_card_state state)
{
    const struct hm_party *at = party;

    if (!party->ganged)
        return true;
    do {
        if (at->card->holder != at || at->card->state != state)
            return false;
        at = hm_gang_next(at);
    } while (at != party);
    return true;
}

/* A gang takes its cards in one order, so that two gangs can't each have half: `party`'s turn is after all before it. */
static bool
gang_may_reserve(const struct hm_party *party)
{
    const struct hm_party *at = party;

    if (!party->ganged)
        return true;
    do {
        at = hm_gang_next(at);
        if (strncmp(at->limit->uuid, party->limit->uuid, HM_UUID_BYTES) < 0 &&
            (at->card->holder != at || at->card->state != HM_CARD_RESERVED))
            return false;
    } while (at != party);
    return true;
}

static bool
wants_now(const struct hm_party *party)
{
    const struct hm_party *at = party;

    if (!party->ganged)
        return party->wants && hm_party_may_open(party);
    do {
        if (at->wants && hm_party_may_open(party))
            return gang_may_reserve(party);
        at = hm_gang_next(at);
    } while (at != party);
    return false;
}

int
hm_turn_rank(const struct hm_card *card, const struct hm_party *party, uint64_t now_ns)
{
    bool batch = hm_party_is_batch(party);
    uint64_t patience = batch && card->others ? FLOOR_NS : STARVED_NS;

    if (party->wanted_since_ns > 0 && now_ns > party->wanted_since_ns + patience)
        return 0;
    if (hm_party_is_latency(party) && party->gate->virtual_ns <= card->virtual_ns + HEAD_START_NS)
        return 1;
    return batch ? 3 : 2;
}

/* Of two of one rank: who waits longest, if that is why they are there, else who had less. */
static bool
comes_before(const struct hm_party *one, const struct hm_party *other, int rank)
{
    return rank == 0 ? one->wanted_since_ns < other->wanted_since_ns
                     : one->gate->virtual_ns < other->gate->virtual_ns;
}

struct hm_party *
hm_turn_choose(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *best = NULL;
    int best_rank = 0;

    for (int i = 0; i < card->count; i++) {
        struct hm_party *party = card->party[i];
        int its_rank;

        if (!wants_now(party))
            continue;
        its_rank = hm_turn_rank(card, party, now_ns);
        if (best == NULL || its_rank < best_rank ||
            (its_rank == best_rank && comes_before(party, best, best_rank))) {
            best = party;
            best_rank = its_rank;
        }
    }
    return best;
}

/* Somebody of class latency comes before the holder. Who is past its head start waits for its turn. */
static bool
is_overtaken(const struct hm_card *card, uint64_t now_ns)
{
    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party != card->holder && hm_party_is_latency(party) && party->wants &&
            hm_party_may_open(party) && hm_turn_rank(card, party, now_ns) < hm_max(card->rank, 2))
            return true;
    }
    return false;
}

/* When the next of those that wait for credit has it. */
uint64_t
hm_turn_opening_ns(const struct hm_card *card, uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;

    for (int i = 0; i < card->count; i++) {
        uint64_t opens =
            card->party[i] != card->holder ? hm_party_opens_ns(card->party[i], now_ns) : UINT64_MAX;

        next = opens < next ? opens : next;
    }
    return next;
}

/* How long the holder may have the card while others want it. */
static int64_t
slot_ns(const struct hm_card *card)
{
    const struct hm_party *holder = card->holder;
    uint32_t heaviest = hm_party_weight(holder);
    int64_t wanting = 1, slot;

    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party == holder || !party->wants || !hm_party_may_open(party))
            continue;
        wanting++;
        if (hm_party_is_batch(party) && !hm_party_is_batch(holder))
            continue; /* what it gets beside others does not go by its weight */
        if (hm_party_weight(party) > heaviest)
            heaviest = hm_party_weight(party);
    }
    slot = hm_min(HM_SLOT_NS, ROUND_NS / wanting) * hm_party_weight(holder) / heaviest;
    return hm_max(slot, HM_LEAST_SLOT_NS);
}

/* When the holder's slot has to end, as things are now. */
uint64_t
hm_turn_end_ns(struct hm_card *card, uint64_t now_ns)
{
    const struct hm_party *party = card->holder;
    bool claimed = hm_turn_claimed(card), free = hm_party_state(party) == HM_GATE_FREE, overtaken,
         least;
    uint64_t end = UINT64_MAX, start;

    if (!claimed)
        card->claimed_ns = 0;
    else if (card->claimed_ns == 0)
        card->claimed_ns = now_ns;
    if (free)
        return claimed || hm_party_is_capped(party) ? now_ns : UINT64_MAX;
    if (hm_party_is_capped(party) && party->busy) {
        int64_t left = party->gate->credit_ns;

        if (party->gate->charged_until_ns <
            card->opened_ns) /* since the opening, and not charged yet */
            left -= (int64_t)(now_ns - card->opened_ns);

        end =
            left <= 0 ? now_ns : now_ns + (uint64_t)(left * 100 / (100 - hm_party_percent(party)));
    }
    if (!claimed)
        return end;
    overtaken = !hm_party_is_latency(party) && is_overtaken(card, now_ns);
    if (overtaken && card->rank > 0)
        return now_ns;
    if (!party->entered)
        return card->opened_ns + HM_UNUSED_NS;
    least = overtaken || (card->rank == 0 && card->others && hm_party_is_batch(party));
    end = hm_min((int64_t)end & INT64_MAX,
                 (int64_t)card->opened_ns + (least ? HM_LEAST_SLOT_NS : slot_ns(card)));
    if (party->busy)
        return end;
    start = party->idle_since_ns > card->opened_ns ? party->idle_since_ns : card->opened_ns;
    return start + IDLE_NS < end ? start + IDLE_NS : end;
}

/*
 * Time that somebody did not use is no claim on what comes: not of who comes back after a pause, nor of who has to wait for
 * what his class or his cap says.
 */
void
hm_turn_join(struct hm_card *card, struct hm_party *party, uint64_t now_ns)
{
    int64_t least = card->virtual_ns - HM_LEAST_SLOT_NS;
    bool comes = now_ns > party->seen_ns + (uint64_t)HM_SLOT_NS * 2,
         waits = party != card->holder && (hm_party_is_batch(party) || !hm_party_may_open(party));

    if ((comes || waits) && party->gate->virtual_ns < least)
        party->gate->virtual_ns = least;
    party->seen_ns = now_ns;
    if (card->last != party)
        card->other_ns = card->last_ns;
    card->last = party;
    card->last_ns = now_ns;
}

uint64_t
hm_turn_contended_until_ns(const struct hm_party *party)
{
    const struct hm_card *card = party->card;
    uint64_t other_ns = card->last == party ? card->other_ns : card->last_ns;

    return other_ns > 0 ? other_ns + CONTENDED_NS : 0;
}

/* The queue is where the holder is. */
void
hm_turn_advance(struct hm_card *card)
{
    card->virtual_ns = hm_max(card->virtual_ns, card->holder->gate->virtual_ns);
}
