/* What a tenant's processes say, what they are charged for, and what a capped tenant may still have. */
#include "turn.h"

#define PERIOD_NS (10 * HM_MS) /* of a cap: its slots and its pauses together */
/* A cap's credit does not grow beyond the first; while it waits for others' slots, not beyond the second. */
#define BURST_NS (20 * HM_MS)
#define WAITING_NS (2 * HM_SLOT_NS)
#define LONGEST_NS (10000 * HM_MS)

/* What a process changes whenever it runs on the card. */
static uint32_t
pulse(const struct hm_use *use)
{
    return hm_load(&use->entered) * 31 + hm_load(&use->drained) * 7 + hm_load(&use->waiting) +
           (uint32_t)use->launches + hm_load(&use->beats) * 127;
}

static bool
is_absent(struct hm_party *party, uint32_t slot, const struct hm_use *use)
{
    uint64_t bit = UINT64_C(1) << slot % 64, *word = &party->absent[slot / 64];

    if ((*word & bit) == 0)
        return false;
    if (pulse(use) == party->absent_was[slot])
        return true;
    *word &= ~bit; /* it answers again */
    return false;
}

static void
set_absent(struct hm_party *party, uint32_t slot, const struct hm_use *use)
{
    party->absent[slot / 64] |= UINT64_C(1) << slot % 64;
    party->absent_was[slot] = pulse(use);
}

/* Whether a process has launched in the present slot and not said that its work has ended. */
static bool
is_owing(const struct hm_party *party, const struct hm_use *use)
{
    return hm_load(&use->entered) == hm_party_slot(party) &&
           hm_load(&use->drained) != hm_party_slot(party);
}

/* From when to when a process had work outstanding, as far as it was not charged. */
static void
note_work(struct hm_party *party, const struct hm_use *use)
{
    uint64_t since = __atomic_load_n(&use->busy_since_ns, __ATOMIC_ACQUIRE),
             idle = __atomic_load_n(&use->idle_since_ns, __ATOMIC_RELAXED);
    bool busy = hm_load(&use->busy) != 0;

    party->busy |= busy;
    if (idle > party->idle_since_ns)
        party->idle_since_ns = idle;
    if (since != 0 && (busy || idle > party->gate->charged_until_ns) &&
        since < party->busy_since_ns)
        party->busy_since_ns = since;
}

/* Read the usage page: what the tenant's processes say. */
void
hm_party_look(struct hm_party *party)
{
    uint32_t high = __atomic_load_n(&party->usage->high_slot, __ATOMIC_ACQUIRE);

    party->wants = party->busy = false;
    party->entered = 0;
    party->drained = true;
    party->ganged = false;
    for (int i = 0; i < HM_DEVICES; i++) /* of its processes one may be ahead of the others */
        party->ganged |= hm_load(&party->usage->device[i].ganged) != 0;
    party->longest_ns = 0;
    party->worked_us = 0;
    party->busy_since_ns = UINT64_MAX;
    party->idle_since_ns = 0;
    for (uint32_t i = 0; i < high && i < HM_SLOTS; i++) {
        const struct hm_slot *slot = &party->usage->slot[i];
        const struct hm_use *use = &slot->use[party->device];

        if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) == 0 || is_absent(party, i, use))
            continue;
        if (use->longest_ns > party->longest_ns)
            party->longest_ns = use->longest_ns;
        party->worked_us += hm_load(&use->worked_us);
        party->wants |= hm_load(&use->waiting) != 0;
        party->entered += hm_load(&use->entered) == hm_party_slot(party);
        party->drained &= !is_owing(party, use);
        note_work(party, use);
    }
}

/* Those that owe us an answer and are dead don't any more; with `all`, nor do those that may be stopped. */
void
hm_party_excuse(struct hm_party *party, bool all)
{
    uint32_t high = __atomic_load_n(&party->usage->high_slot, __ATOMIC_ACQUIRE);

    for (uint32_t i = 0; i < high && i < HM_SLOTS; i++) {
        const struct hm_use *use = &party->usage->slot[i].use[party->device];
        bool waits = hm_load(&use->waiting) != 0 && !party->entered;

        if ((is_owing(party, use) || waits || hm_load(&use->busy) != 0) &&
            (all || !party->lives(party->lives_of, (int)i)))
            set_absent(party, i, use);
    }
}

void
hm_party_charge(struct hm_party *party, int64_t ns)
{
    party->gate->charged_ns += (uint64_t)ns;
    party->gate->virtual_ns += ns * HM_FULL_WEIGHT / hm_party_weight(party);
    if (party->percent < 100)
        party->gate->credit_ns -= ns;
}

/*
 * Charge the time with work outstanding since the last charge, also what began and ended since. Of what has ended it is
 * known a moment later when, so that some may be given back. In free mode nobody can tell, and nothing is charged.
 */
void
hm_party_account(struct hm_party *party, uint64_t now_ns)
{
    struct hm_gate *gate = party->gate;
    uint64_t until = party->busy ? now_ns : party->idle_since_ns, from = gate->charged_until_ns;

    if (until > now_ns)
        until = now_ns;
    if (!party->busy && party->was_busy && until < from && until > party->card->opened_ns) {
        hm_party_charge(party, -(int64_t)(from - until));
        gate->charged_until_ns = from = until;
    }
    party->was_busy = party->busy;
    if (from < party->card->opened_ns)
        from = party->card->opened_ns;
    if (from < party->busy_since_ns)
        from = party->busy_since_ns;
    if (until <= from)
        return;
    hm_party_charge(party, (int64_t)(until - from));
    gate->charged_until_ns = until;
}

static void
give_credit(struct hm_party *party, bool worked, uint64_t now_ns)
{
    struct hm_gate *gate = party->gate;
    int64_t passed = now_ns > gate->credited_ns ? (int64_t)(now_ns - gate->credited_ns) : 0, most;

    if (party->percent == 100 || gate->credited_ns == 0) {
        gate->credit_ns = 0;
        gate->credited_ns = now_ns;
        return;
    }
    passed = hm_min(passed, LONGEST_NS); /* a machine that slept owes nobody */
    if (passed < 100)
        return; /* so that rounding loses nothing to speak of */
    /* While it worked all along, its credit is what it has to pay with once it is known what it took. */
    most = worked ? INT64_MAX : party->wanted_since_ns > 0 && !party->rests ? WAITING_NS : BURST_NS;
    most = hm_max(most,
                  gate->credit_ns); /* what a successor was given for the time without an arbiter */
    gate->credit_ns = hm_min(most, gate->credit_ns + passed * party->percent / 100);
    gate->credited_ns = now_ns;
}

/*
 * The credit with which a capped tenant's slot begins that had none left. Alone, its slots and pauses are short; where changes
 * cost, to other tenants or between its own processes, its slot is as long as anybody's.
 */
static int64_t
opening_credit(const struct hm_party *party)
{
    int64_t percent = hm_party_percent(party), slot = PERIOD_NS * percent / 100;

    if (party->entered > 1 || hm_turn_contended_until_ns(party) > party->gate->credited_ns)
        slot = HM_SLOT_NS;
    return slot * (100 - percent) / 100;
}

void
hm_party_credit(struct hm_party *party, bool worked, uint64_t now_ns)
{
    int64_t opening = opening_credit(party),
            least = HM_LEAST_SLOT_NS * (100 - hm_party_percent(party)) / 100;

    give_credit(party, worked, now_ns);
    party->rests = hm_party_is_capped(party) &&
                   party->gate->credit_ns < (party->rests ? opening : hm_min(least, opening));
}

bool
hm_party_may_open(const struct hm_party *party)
{
    return !party->rests;
}

/* When a capped tenant that waits will have its credit; UINT64_MAX: it is not that it lacks. */
uint64_t
hm_party_opens_ns(const struct hm_party *party, uint64_t now_ns)
{
    int64_t lacks = hm_max(opening_credit(party) - party->gate->credit_ns, 0);

    return party->wants && party->rests
               ? now_ns + (uint64_t)(lacks * 100 / hm_party_percent(party)) + HM_US
               : UINT64_MAX;
}
