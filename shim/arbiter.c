#include "arbiter.h"

#include "futex.h"

#include <string.h>

#define US 1000
#define MS INT64_C(1000000)

#define SLOT_NS (20 * MS)
#define LEAST_SLOT_NS (2 * MS)
#define ROUND_NS \
    (80 *        \
     MS) /* with many that want the card, slots get shorter, so that a turn does not take longer */
#define IDLE_NS (300 * US) /* as HM_IDLE_NS of the shim */
#define UNUSED_NS (5 * MS) /* who asked for the card and does not launch loses it */
#define UNPAID_NS (1 * MS) /* of a slot: until it has begun, and until it is seen to be idle */
#define CONTENDED_NS (500 * MS)
#define LATENCY_NS (1000 * MS)
#define STARVED_NS \
    (400 * MS) /* who waited so long is next, whatever the classes: a few percent for everybody */
#define HEAD_START_NS (20 * MS)
#define PERIOD_NS (10 * MS)      /* of a cap: its slots and its pauses together */
#define LONG_PERIOD_NS (20 * MS) /* while others want the card: each change costs */
#define BURST_NS (20 * MS)       /* a cap's credit does not grow beyond this */
#define LONGEST_NS (10000 * MS)
#define LONGEST_GAP_NS (1000 * MS) /* between one arbiter and the next, if they follow each other */
#define WINDOW_NS (1 * MS)
#define SHORT_WINDOW_NS (120 * US)
#define LONG_WINDOW_NS (5 * MS)
#define DRAIN_NS (50 * MS)
#define LONGEST_DRAIN_NS (500 * MS)
#define ASK_NS (3 * MS) /* not drained after so long: is the process alive? */
#define MISSES_NS (10000 * MS)
#define FULL_WEIGHT 100

static int64_t
min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t
max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static uint32_t
load(const uint32_t *word)
{
    return __atomic_load_n(
        word, __ATOMIC_SEQ_CST); /* partner: gate.c publishes before it looks at the gate */
}

static uint32_t
percent_of(const struct hm_party *party)
{
    uint32_t percent = __atomic_load_n(&party->limit->time_percent, __ATOMIC_RELAXED);

    return percent > 0 && percent < 100 ? percent : 100;
}

static bool
is_capped(const struct hm_party *party)
{
    return percent_of(party) < 100;
}

static uint32_t
weight_of(const struct hm_party *party)
{
    uint32_t weight = __atomic_load_n(&party->limit->weight, __ATOMIC_RELAXED);

    return weight > 0 ? weight : FULL_WEIGHT;
}

static bool
is_latency(const struct hm_party *party)
{
    return __atomic_load_n(&party->limit->latency_class, __ATOMIC_RELAXED) == HM_LATENCY;
}

static bool
is_batch(const struct hm_party *party)
{
    return __atomic_load_n(&party->limit->latency_class, __ATOMIC_RELAXED) == HM_BATCH;
}

static enum hm_gate_state
state_of(const struct hm_party *party)
{
    return (enum hm_gate_state)(party->gate->word & HM_GATE_STATES);
}

static uint32_t
slot_of(const struct hm_party *party)
{
    return party->gate->word / HM_GATE_SLOT;
}

/* What a process changes whenever it runs on the card. */
static uint32_t
pulse(const struct hm_use *use)
{
    return load(&use->entered) * 31 + load(&use->drained) * 7 + load(&use->waiting) +
           (uint32_t)use->launches + load(&use->beats) * 127;
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
    return load(&use->entered) == slot_of(party) && load(&use->drained) != slot_of(party);
}

/* From when to when a process had work outstanding, as far as it was not charged. */
static void
note_work(struct hm_party *party, const struct hm_use *use)
{
    uint64_t since = __atomic_load_n(&use->busy_since_ns, __ATOMIC_ACQUIRE),
             idle = __atomic_load_n(&use->idle_since_ns, __ATOMIC_RELAXED);
    bool busy = load(&use->busy) != 0;

    party->busy |= busy;
    if (idle > party->idle_since_ns)
        party->idle_since_ns = idle;
    if (since != 0 && (busy || idle > party->gate->charged_until_ns) &&
        since < party->busy_since_ns)
        party->busy_since_ns = since;
}

/* Read the usage page: what the tenant's processes say. */
static void
look(struct hm_party *party)
{
    uint32_t high = __atomic_load_n(&party->usage->high_slot, __ATOMIC_ACQUIRE);

    party->wants = party->busy = party->entered = false;
    party->drained = true;
    party->ganged = false;
    for (int i = 0; i < HM_DEVICES; i++) /* of its processes one may be ahead of the others */
        party->ganged |= load(&party->usage->device[i].ganged) != 0;
    party->longest_ns = 0;
    party->busy_since_ns = UINT64_MAX;
    party->idle_since_ns = 0;
    for (uint32_t i = 0; i < high && i < HM_SLOTS; i++) {
        const struct hm_slot *slot = &party->usage->slot[i];
        const struct hm_use *use = &slot->use[party->device];

        if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) == 0 || is_absent(party, i, use))
            continue;
        if (use->longest_ns > party->longest_ns)
            party->longest_ns = use->longest_ns;
        party->wants |= load(&use->waiting) != 0;
        party->entered |= load(&use->entered) == slot_of(party);
        party->drained &= !is_owing(party, use);
        note_work(party, use);
    }
}

/* Those that owe us an answer and are dead don't any more; with `all`, nor do those that may be stopped. */
static void
excuse(struct hm_party *party, bool all)
{
    uint32_t high = __atomic_load_n(&party->usage->high_slot, __ATOMIC_ACQUIRE);

    for (uint32_t i = 0; i < high && i < HM_SLOTS; i++) {
        const struct hm_use *use = &party->usage->slot[i].use[party->device];
        bool waits = load(&use->waiting) != 0 && !party->entered;

        if ((is_owing(party, use) || waits || load(&use->busy) != 0) &&
            (all || !party->lives(party->lives_of, (int)i)))
            set_absent(party, i, use);
    }
}

static void
charge(struct hm_party *party, int64_t ns)
{
    party->gate->charged_ns += (uint64_t)ns;
    party->gate->virtual_ns += ns * FULL_WEIGHT / weight_of(party);
    if (is_capped(party))
        party->gate->credit_ns -= ns;
}

/*
 * Charge the time with work outstanding since the last charge, also what began and ended since. Of what has ended it is
 * known a moment later when, so that some may be given back. In free mode nobody can tell, and nothing is charged.
 */
static void
account(struct hm_party *party, uint64_t now_ns)
{
    struct hm_gate *gate = party->gate;
    uint64_t until = party->busy ? now_ns : party->idle_since_ns, from = gate->charged_until_ns;

    if (until > now_ns)
        until = now_ns;
    if (!party->busy && party->was_busy && until < from && until > party->card->opened_ns) {
        charge(party, -(int64_t)(from - until));
        gate->charged_until_ns = from = until;
    }
    party->was_busy = party->busy;
    if (from < party->card->opened_ns)
        from = party->card->opened_ns;
    if (from < party->busy_since_ns)
        from = party->busy_since_ns;
    if (until <= from)
        return;
    charge(party, (int64_t)(until - from));
    gate->charged_until_ns = until;
}

static void
give_credit(struct hm_party *party, bool worked, uint64_t now_ns)
{
    struct hm_gate *gate = party->gate;
    int64_t passed = now_ns > gate->credited_ns ? (int64_t)(now_ns - gate->credited_ns) : 0, most;

    if (!is_capped(party) || gate->credited_ns == 0) {
        gate->credit_ns = 0;
        gate->credited_ns = now_ns;
        return;
    }
    passed = min(passed, LONGEST_NS); /* a machine that slept owes nobody */
    if (passed < 100)
        return; /* so that rounding loses nothing to speak of */
    /* While it worked all along, its credit is what it has to pay with once it is known what it took. */
    most = worked ? INT64_MAX : BURST_NS;
    most =
        max(most, gate->credit_ns); /* what a successor was given for the time without an arbiter */
    gate->credit_ns = min(most, gate->credit_ns + passed * percent_of(party) / 100);
    gate->credited_ns = now_ns;
}

/* The credit with which a capped tenant's slot begins: that of a period whose slots and pauses are as the cap says. */
static int64_t
opening_credit(const struct hm_party *party)
{
    int64_t percent = percent_of(party),
            period =
                party->card->count > 1 && party->card->contended_until_ns > party->gate->credited_ns
                    ? LONG_PERIOD_NS
                    : PERIOD_NS;

    return period * percent * (100 - percent) / 10000;
}

static bool
may_open(const struct hm_party *party)
{
    return !is_capped(party) || party->gate->credit_ns >= opening_credit(party);
}

/* When a capped tenant that waits will have its credit; UINT64_MAX: it is not that it lacks. */
static uint64_t
opens_ns(const struct hm_party *party, uint64_t now_ns)
{
    int64_t lacks = opening_credit(party) - party->gate->credit_ns;

    return party->wants && is_capped(party) && lacks > 0
               ? now_ns + (uint64_t)(lacks * 100 / percent_of(party)) + US
               : UINT64_MAX;
}

static void
set_gate(struct hm_party *party, uint32_t slot, enum hm_gate_state state)
{
    __atomic_store_n(&party->gate->word, slot * HM_GATE_SLOT | state,
                     __ATOMIC_SEQ_CST); /* partner: gate.c */
    hm_futex_wake(&party->gate->word);
}

/*
 * While somebody of class latency is about, the window is short for all others; his own is long, since to fill it again takes
 * a thread that wakes in time. Each process of a tenant has it whole: with less than a slice of the driver's in flight, several
 * processes would lose more to the changes between them.
 */
static void
set_window(const struct hm_card *card, struct hm_party *party, uint64_t now_ns)
{
    int64_t window = WINDOW_NS;

    if (is_latency(party))
        window = LONG_WINDOW_NS;
    else if (now_ns < card->latency_until_ns)
        window = SHORT_WINDOW_NS;
    __atomic_store_n(&party->gate->window_ns, (uint32_t)window, __ATOMIC_RELAXED);
}

static bool
is_contended(const struct hm_card *card, uint64_t now_ns)
{
    return now_ns < card->contended_until_ns;
}

/* Another tenant wants the card, and may have it. */
static bool
is_claimed(const struct hm_card *card)
{
    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party != card->holder && party->wants && may_open(party))
            return true;
    }
    return false;
}

static void
start_slot(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    bool metered = is_capped(party) || is_contended(card, now_ns);

    card->state = HM_CARD_HELD;
    card->opened_ns = now_ns;
    card->claimed_ns = 0;
    party->charged_before_ns = party->gate->charged_ns;
    party->gate->slots++;
    set_window(card, party, now_ns);
    set_gate(party, (slot_of(party) + 1) & (UINT32_MAX / HM_GATE_SLOT),
             metered ? HM_GATE_WINDOWED : HM_GATE_FREE);
}

static void
close_gate(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;

    if (state_of(party) == HM_GATE_FREE) {
        party->was_busy = false; /* an end from before is none of this */
        party->gate->free_ns += now_ns - card->opened_ns;
        party->gate->charged_until_ns =
            now_ns; /* what is still queued is charged, what was done is not */
    }
    card->state = HM_CARD_DRAINING;
    card->closed_ns = now_ns;
    set_gate(party, slot_of(party), HM_GATE_CLOSED);
}

/* The same tenant on its next card; those that are not there are left out. */
static struct hm_party *
next_of_gang(const struct hm_party *party)
{
    struct hm_party *at = party->gang;

    while (at->card == NULL)
        at = at->gang;
    return at;
}

/* The gang possesses or reserves a card if this says so of each; a tenant on one card is a gang of one. */
static bool
gang_is(const struct hm_party *party, enum hm_card_state state)
{
    const struct hm_party *at = party;

    if (!party->ganged)
        return true;
    do {
        if (at->card->holder != at || at->card->state != state)
            return false;
        at = next_of_gang(at);
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
        at = next_of_gang(at);
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
        return party->wants && may_open(party);
    do {
        if (at->wants && may_open(party))
            return gang_may_reserve(party);
        at = next_of_gang(at);
    } while (at != party);
    return false;
}

/* 0 is served first. */
static int
rank(const struct hm_card *card, const struct hm_party *party, uint64_t now_ns)
{
    if (party->wanted_since_ns > 0 && now_ns > party->wanted_since_ns + STARVED_NS)
        return 0;
    if (is_latency(party) && party->gate->virtual_ns <= card->virtual_ns + HEAD_START_NS)
        return 1;
    return is_batch(party) ? 3 : 2;
}

/* Of two of one rank: who waits longest, if that is why they are there, else who had less. */
static bool
comes_before(const struct hm_party *one, const struct hm_party *other, int rank)
{
    return rank == 0 ? one->wanted_since_ns < other->wanted_since_ns
                     : one->gate->virtual_ns < other->gate->virtual_ns;
}

static struct hm_party *
choose(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *best = NULL;
    int best_rank = 0;

    for (int i = 0; i < card->count; i++) {
        struct hm_party *party = card->party[i];
        int its_rank;

        if (!wants_now(party))
            continue;
        its_rank = rank(card, party, now_ns);
        if (best == NULL || its_rank < best_rank ||
            (its_rank == best_rank && comes_before(party, best, best_rank))) {
            best = party;
            best_rank = its_rank;
        }
    }
    return best;
}

/* Who comes back after a pause does not bring the time along that it did not use. */
static void
join_queue(struct hm_card *card, struct hm_party *party, uint64_t now_ns)
{
    int64_t least = card->virtual_ns - LEAST_SLOT_NS;

    if (now_ns > party->seen_ns + (uint64_t)SLOT_NS * 2 && party->gate->virtual_ns < least)
        party->gate->virtual_ns = least;
    party->seen_ns = now_ns;
}

/* The queue is where the holder is. */
static void
advance_queue(struct hm_card *card)
{
    card->virtual_ns = max(card->virtual_ns, card->holder->gate->virtual_ns);
}

static void
look_at_all(struct hm_card *card, uint64_t now_ns)
{
    for (int i = 0; i < card->count; i++) {
        struct hm_party *party = card->party[i];
        bool worked = party == card->holder && party->was_busy;

        look(party);
        if (party == card->holder && state_of(party) != HM_GATE_FREE)
            account(party, now_ns); /* before the credit, which does not grow without end */
        give_credit(party, worked, now_ns);
        if (party->wants || party == card->holder)
            join_queue(card, party, now_ns);
        if (party->wants && party != card->holder && (is_batch(party) || !may_open(party)) &&
            party->gate->virtual_ns < card->virtual_ns - LEAST_SLOT_NS)
            party->gate->virtual_ns =
                card->virtual_ns - LEAST_SLOT_NS; /* its class's or its cap's doing */
        if (!party->wants || (party == card->holder && party->entered))
            party->wanted_since_ns = 0;
        else if (party->wanted_since_ns == 0)
            party->wanted_since_ns = now_ns;
        if (party->wants && party != card->holder) {
            card->contended_until_ns = now_ns + CONTENDED_NS;
            if (is_latency(party))
                card->latency_until_ns = now_ns + LATENCY_NS;
        }
        if (party == card->holder && is_latency(party))
            card->latency_until_ns = now_ns + LATENCY_NS;
    }
    if (card->holder != NULL && !is_claimed(card)) /* it would be its turn again and again */
        advance_queue(card);
}

/* Somebody of class latency comes before the holder. Who is past its head start waits for its turn. */
static bool
is_overtaken(const struct hm_card *card, uint64_t now_ns)
{
    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party != card->holder && is_latency(party) && party->wants && may_open(party) &&
            rank(card, party, now_ns) < max(card->rank, 2))
            return true;
    }
    return false;
}

/* When the next of those that wait for credit has it. */
static uint64_t
next_opening(const struct hm_card *card, uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;

    for (int i = 0; i < card->count; i++) {
        uint64_t opens =
            card->party[i] != card->holder ? opens_ns(card->party[i], now_ns) : UINT64_MAX;

        next = opens < next ? opens : next;
    }
    return next;
}

/* How long the holder may have the card while others want it. */
static int64_t
slot_ns(const struct hm_card *card)
{
    const struct hm_party *holder = card->holder;
    uint32_t heaviest = weight_of(holder);
    int64_t wanting = 1, slot;

    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party == holder || !party->wants || !may_open(party))
            continue;
        wanting++;
        if (weight_of(party) > heaviest)
            heaviest = weight_of(party);
    }
    slot = min(SLOT_NS, ROUND_NS / wanting) * weight_of(holder) / heaviest;
    return max(slot, LEAST_SLOT_NS);
}

/* When the holder's slot has to end, as things are now. */
static uint64_t
end_of_slot(struct hm_card *card, uint64_t now_ns)
{
    const struct hm_party *party = card->holder;
    bool claimed = is_claimed(card), free = state_of(party) == HM_GATE_FREE, overtaken;
    uint64_t end = UINT64_MAX, start;

    if (!claimed)
        card->claimed_ns = 0;
    else if (card->claimed_ns == 0)
        card->claimed_ns = now_ns;
    if (free)
        return claimed || is_capped(party) ? now_ns : UINT64_MAX;
    if (is_capped(party) && party->busy) {
        int64_t left = party->gate->credit_ns;

        if (party->gate->charged_until_ns <
            card->opened_ns) /* since the opening, and not charged yet */
            left -= (int64_t)(now_ns - card->opened_ns);

        end = left <= 0 ? now_ns : now_ns + (uint64_t)(left * 100 / (100 - percent_of(party)));
    }
    if (!claimed)
        return end;
    overtaken = !is_latency(party) && is_overtaken(card, now_ns);
    if (overtaken && card->rank > 0)
        return now_ns;
    if (!party->entered)
        return card->opened_ns + UNUSED_NS;
    end = min((int64_t)end & INT64_MAX,
              (int64_t)card->opened_ns + (overtaken ? LEAST_SLOT_NS : slot_ns(card)));
    if (party->busy)
        return end;
    start = party->idle_since_ns > card->opened_ns ? party->idle_since_ns : card->opened_ns;
    return start + IDLE_NS < end ? start + IDLE_NS : end;
}

/* What the gang still has of its other cards is closed. */
static void
close_others(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;

    if (!party->ganged)
        return;
    for (struct hm_party *at = next_of_gang(party); at != party; at = next_of_gang(at)) {
        if (at->card->holder != at || at->card->state != HM_CARD_HELD)
            continue;
        close_gate(at->card, now_ns);
        card->touched = true;
    }
}

static uint64_t
go_on(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    uint64_t end = end_of_slot(card, now_ns), opening = next_opening(card, now_ns);

    if (end <= now_ns) {
        if (!party->entered && now_ns >= card->opened_ns + UNUSED_NS)
            excuse(party, true); /* who asked for the card and does not run */
        close_gate(card, now_ns);
        close_others(card, now_ns);
        return now_ns;
    }
    if (state_of(party) == HM_GATE_WINDOWED && !is_capped(party) && !is_contended(card, now_ns)) {
        card->opened_ns = now_ns; /* free_ns counts from here */
        set_gate(party, slot_of(party), HM_GATE_FREE);
        return UINT64_MAX;
    }
    set_window(card, party, now_ns);
    if (state_of(party) == HM_GATE_WINDOWED && !is_capped(party) && card->contended_until_ns < end)
        end = card->contended_until_ns;
    return opening < end ? opening : end;
}

/* A slot whose work did not end in time: the next one starts beside it. */
static void
miss(struct hm_party *party, uint64_t now_ns)
{
    memmove(party->missed_ns, party->missed_ns + 1, 2 * sizeof(party->missed_ns[0]));
    party->missed_ns[2] = now_ns;
    party->gate->misses++;
    excuse(party, true);
}

/* Kernels can't be stopped: for long ones we wait longer. */
static uint64_t
drain_ns(const struct hm_party *party)
{
    int64_t longest = party->longest_ns < (uint64_t)LONGEST_DRAIN_NS ? (int64_t)party->longest_ns
                                                                     : LONGEST_DRAIN_NS;

    return (uint64_t)min(max(DRAIN_NS, 2 * longest), LONGEST_DRAIN_NS);
}

/* Who had the card while others waited for it pays for that time, whatever it says of its work. */
static void
charge_possession(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    int64_t charged = (int64_t)(party->gate->charged_ns - party->charged_before_ns),
            owed = card->claimed_ns > 0 ? (int64_t)(now_ns - card->claimed_ns) - UNPAID_NS : 0;

    if (owed > charged)
        charge(party, owed - charged);
}

static uint64_t
drain(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    uint64_t limit = card->closed_ns + drain_ns(party);

    if (!party->drained && now_ns < limit) {
        if (now_ns >= card->closed_ns + ASK_NS)
            excuse(party, false);
        return min((int64_t)limit, (int64_t)now_ns + ASK_NS);
    }
    if (!party->drained)
        miss(party, now_ns);
    charge_possession(card, now_ns);
    party->gate->unpreemptible =
        party->missed_ns[0] > 0 && now_ns < party->missed_ns[0] + (uint64_t)MISSES_NS;
    card->holder = NULL;
    card->state = HM_CARD_IDLE;
    return now_ns;
}

/* The card is its holder's, once its gang has all others too. What it has of them from before it was one comes back first. */
static uint64_t
reserved(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder, *at = party;

    if (!gang_is(party, HM_CARD_RESERVED)) {
        close_others(card, now_ns);
        return UINT64_MAX; /* its other cards' steps go on with it */
    }
    do {
        start_slot(at->card, now_ns);
        card->touched |= at != party;
        at = next_of_gang(at);
    } while (party->ganged && at != party);
    return now_ns;
}

static uint64_t
hand_out(struct hm_card *card, uint64_t now_ns)
{
    card->holder = choose(card, now_ns);
    if (card->holder == NULL)
        return next_opening(card, now_ns);
    card->rank = rank(card, card->holder, now_ns);
    if (card->rank >= 2) /* it is its turn */
        advance_queue(card);
    card->state = HM_CARD_RESERVED;
    return now_ns;
}

uint64_t
hm_card_step(struct hm_card *card, uint64_t now_ns)
{
    uint64_t next = now_ns;

    card->touched = false;
    look_at_all(card, now_ns);
    for (int i = 0; i < 8 && next <= now_ns; i++) { /* each state leads to another at most once */
        switch (card->state) {
        case HM_CARD_IDLE:
            next = hand_out(card, now_ns);
            break;
        case HM_CARD_RESERVED:
            next = reserved(card, now_ns);
            break;
        case HM_CARD_HELD:
            next = go_on(card, now_ns);
            break;
        case HM_CARD_DRAINING:
            next = drain(card, now_ns);
            break;
        }
    }
    return card->touched ? now_ns : next;
}

bool
hm_card_hurries(const struct hm_card *card, uint64_t now_ns)
{
    return card->holder != NULL && !is_latency(card->holder) && now_ns < card->latency_until_ns;
}

bool
hm_card_add(struct hm_card *card, struct hm_party *party, uint64_t now_ns)
{
    if (card->count == HM_PARTIES)
        return false;
    party->card = card;
    if (party->gang == NULL)
        party->gang = party;
    card->party[card->count++] = party;
    card->virtual_ns = max(card->virtual_ns, party->gate->virtual_ns);
    look(party);
    if (state_of(party) == HM_GATE_CLOSED && party->drained)
        return true;
    /* Another arbiter left it so: it is at work, maybe beside others, until they are drained one by one. */
    if (card->holder == NULL) {
        card->holder = party;
        card->rank = is_batch(party) ? 3 : 2;
        card->state = state_of(party) == HM_GATE_CLOSED ? HM_CARD_DRAINING : HM_CARD_HELD;
        card->opened_ns = card->closed_ns = now_ns;
        if (party->gate->charged_until_ns + LONGEST_GAP_NS > now_ns) /* nobody charged it since */
            card->opened_ns = min(party->gate->charged_until_ns, now_ns);
    } else {
        set_gate(party, slot_of(party), HM_GATE_CLOSED);
    }
    return true;
}

void
hm_card_remove(struct hm_card *card, struct hm_party *party)
{
    struct hm_party *before = party;

    for (int i = 0; i < card->count; i++)
        if (card->party[i] == party)
            card->party[i--] = card->party[--card->count];
    while (before->gang != party)
        before = before->gang;
    before->gang = party->gang;
    if (card->holder == party) {
        card->holder = NULL;
        card->state = HM_CARD_IDLE;
    }
}
