#include "futex.h"
#include "turn.h"

#include <string.h>

#define UNPAID_NS (1 * HM_MS) /* of a slot: until it has begun, and until it is seen to be idle */
#define LATENCY_NS (1000 * HM_MS)
/* Between one arbiter and the next, if they follow each other. */
#define LONGEST_GAP_NS (1000 * HM_MS)
#define WINDOW_NS (1 * HM_MS)
#define SHORT_WINDOW_NS (120 * HM_US)
#define LONG_WINDOW_NS (5 * HM_MS)
#define DRAIN_NS (50 * HM_MS)
#define LONGEST_DRAIN_NS (500 * HM_MS)
#define ASK_NS (3 * HM_MS) /* not drained after so long: is the process alive? */
#define MISSES_NS (10000 * HM_MS)
/*
 * Turns are not worth it where the card is at work for less than so much of them: a driver that shares a card by itself, among
 * those that never let it rest, has it at work for nine tenths. That has to be seen twice; then the card is open, the longer
 * the more often a short look found it so again.
 */
#define SPARSE_PERCENT 75
#define TURNS_NS (150 * HM_MS)
#define LOOK_NS (50 * HM_MS)
#define SPARSE_TURNS 2
#define OPEN_NS (5000 * HM_MS)
#define LONGEST_OPEN_NS (20000 * HM_MS)

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

    if (hm_party_is_latency(party))
        window = LONG_WINDOW_NS;
    else if (now_ns < card->latency_until_ns)
        window = SHORT_WINDOW_NS;
    __atomic_store_n(&party->gate->window_ns, (uint32_t)window, __ATOMIC_RELAXED);
}

/*
 * How far the window reaches. One of class latency may want the card at any moment; and each process of a tenant would have
 * it all for itself.
 */
static void
set_end(const struct hm_card *card, struct hm_party *party, uint64_t end_ns)
{
    bool far = party->busy && party->entered == 1 && end_ns < UINT64_MAX;

    for (int i = 0; i < card->count && far; i++)
        far = !hm_party_is_latency(card->party[i]);
    __atomic_store_n(&party->gate->ends_ns, far ? end_ns : 0, __ATOMIC_RELAXED);
}

static void
free_gate(struct hm_party *party, uint32_t slot, uint64_t since_ns)
{
    party->free_since_ns = since_ns;
    set_gate(party, slot, HM_GATE_FREE);
}

static void
close_free_gate(struct hm_party *party, uint64_t since_ns, uint64_t now_ns)
{
    party->free_since_ns = 0;
    party->was_busy = false; /* an end from before is none of this */
    party->gate->free_ns += now_ns - since_ns;
    /* what is still queued is charged, what was done is not */
    party->gate->charged_until_ns = now_ns;
    set_gate(party, hm_party_slot(party), HM_GATE_CLOSED);
}

static void
start_slot(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    bool metered = hm_party_is_capped(party) || hm_turn_contended_until_ns(party) > now_ns;

    card->state = HM_CARD_HELD;
    card->opened_ns = now_ns;
    card->claimed_ns = 0;
    party->charged_before_ns = party->gate->charged_ns;
    party->worked_before_us = party->worked_us;
    party->gate->slots++;
    set_window(card, party, now_ns);
    set_end(card, party, UINT64_MAX); /* when it ends hangs on what it does */
    set_gate(party, hm_party_next_slot(party), metered ? HM_GATE_WINDOWED : HM_GATE_FREE);
}

static void
close_gate(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;

    card->state = HM_CARD_DRAINING;
    card->closed_ns = now_ns;
    if (hm_party_state(party) == HM_GATE_FREE)
        close_free_gate(party, card->opened_ns, now_ns);
    else
        set_gate(party, hm_party_slot(party), HM_GATE_CLOSED);
}

static void
look_at_all(struct hm_card *card, uint64_t now_ns)
{
    card->others = false;
    for (int i = 0; i < card->count; i++) {
        struct hm_party *party = card->party[i];
        bool worked = party == card->holder && party->was_busy;

        hm_party_look(party);
        if (party == card->holder && hm_party_state(party) != HM_GATE_FREE)
            hm_party_account(party, now_ns); /* before its credit, which has a limit */
        hm_party_credit(party, worked, now_ns);
        party->percent = hm_party_percent(party); /* from now on */
        if (party->wants || party == card->holder) {
            hm_turn_join(card, party, now_ns);
            card->others |= !hm_party_is_batch(party);
        }
        if (!party->wants || (party == card->holder && party->entered))
            party->wanted_since_ns = 0;
        else if (party->wanted_since_ns == 0)
            party->wanted_since_ns = now_ns;
        if ((party->wants || party == card->holder) && hm_party_is_latency(party))
            card->latency_until_ns = now_ns + LATENCY_NS;
    }
    if (card->holder != NULL && !hm_turn_claimed(card)) /* it would be its turn again and again */
        hm_turn_advance(card);
}

/*
 * Whether the tenants may have the card all at once. Those that are capped have to be metered, and a gang's processes wait for
 * each other on the card.
 */
static bool
may_be_open(const struct hm_card *card, uint64_t now_ns)
{
    if (now_ns >= card->open_until_ns)
        return false;
    for (int i = 0; i < card->count; i++) {
        const struct hm_party *party = card->party[i];

        if (party->ganged || (hm_party_is_capped(party) && (party->wants || party == card->holder)))
            return false;
    }
    return true;
}

/* What the gang still has of its other cards is closed. */
static void
close_others(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;

    if (!party->ganged)
        return;
    for (struct hm_party *at = hm_gang_next(party); at != party; at = hm_gang_next(at)) {
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
    uint64_t end = hm_turn_end_ns(card, now_ns), opening = hm_turn_opening_ns(card, now_ns),
             contended_until = hm_turn_contended_until_ns(party);

    if (hm_turn_claimed(card) && may_be_open(card, now_ns)) {
        card->holder = NULL;
        card->state = HM_CARD_OPEN;
        free_gate(party, hm_party_slot(party),
                  hm_party_state(party) == HM_GATE_FREE ? card->opened_ns : now_ns);
        return now_ns;
    }
    if (end <= now_ns) {
        if (!party->entered && now_ns >= card->opened_ns + HM_UNUSED_NS)
            hm_party_excuse(party, true); /* who asked for the card and does not run */
        close_gate(card, now_ns);
        close_others(card, now_ns);
        return now_ns;
    }
    if (hm_party_state(party) == HM_GATE_WINDOWED && !hm_party_is_capped(party) &&
        contended_until <= now_ns) {
        card->opened_ns = now_ns; /* free_ns counts from here */
        set_gate(party, hm_party_slot(party), HM_GATE_FREE);
        return UINT64_MAX;
    }
    set_window(card, party, now_ns);
    set_end(card, party, end);
    if (hm_party_state(party) == HM_GATE_WINDOWED && !hm_party_is_capped(party) &&
        contended_until < end)
        end = contended_until;
    return opening < end ? opening : end;
}

/* A slot whose work did not end in time: the next one starts beside it. */
static void
miss(struct hm_party *party, uint64_t now_ns)
{
    memmove(party->missed_ns, party->missed_ns + 1, 2 * sizeof(party->missed_ns[0]));
    party->missed_ns[2] = now_ns;
    party->gate->misses++;
    hm_party_excuse(party, true);
}

/* Kernels can't be stopped: for long ones we wait longer. */
static uint64_t
drain_ns(const struct hm_party *party)
{
    int64_t longest = party->longest_ns < (uint64_t)LONGEST_DRAIN_NS ? (int64_t)party->longest_ns
                                                                     : LONGEST_DRAIN_NS;

    return (uint64_t)hm_min(hm_max(DRAIN_NS, 2 * longest), LONGEST_DRAIN_NS);
}

/* A slot of turns is over, and the change before it: was the card at work? */
static void
judge(struct hm_card *card, int64_t passed, uint64_t now_ns)
{
    const struct hm_party *party = card->holder;
    int64_t worked = (int64_t)(party->worked_us - party->worked_before_us) * HM_US;
    bool known = card->sparse >= SPARSE_TURNS;

    card->taken_ns += (uint64_t)passed;
    card->worked_ns += (uint64_t)hm_min(worked, passed);
    if (card->taken_ns < (uint64_t)(known ? LOOK_NS : TURNS_NS))
        return;
    if (card->worked_ns == 0 || card->worked_ns * 100 >= card->taken_ns * SPARSE_PERCENT) {
        card->sparse = 0; /* or nobody says so */
    } else if (++card->sparse >= SPARSE_TURNS) {
        card->open_ns =
            known ? (uint64_t)hm_min((int64_t)card->open_ns * 2, LONGEST_OPEN_NS) : OPEN_NS;
        card->open_until_ns = now_ns + card->open_ns;
    }
    card->taken_ns = card->worked_ns = 0;
}

/* Others waited for the card all along, but for a moment at the beginning of the slot. */
static bool
was_claimed(const struct hm_card *card)
{
    return card->freed_ns > 0 && card->claimed_ns > 0 &&
           card->claimed_ns < card->opened_ns + HM_UNUSED_NS;
}

/*
 * Who had the card while others waited for it pays for that time, whatever it says of its work. What is left of the time
 * since the last slot went to the change.
 */
static void
settle_slot(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    int64_t charged = (int64_t)(party->gate->charged_ns - party->charged_before_ns),
            owed = card->claimed_ns > 0 ? (int64_t)(now_ns - card->claimed_ns) - UNPAID_NS : 0,
            passed = was_claimed(card) ? (int64_t)(now_ns - card->freed_ns) : 0;

    if (owed > charged) {
        hm_party_charge(party, owed - charged);
        charged = owed;
    }
    card->handover_ns += (uint64_t)hm_max(passed - charged, 0);
    if (passed > 0)
        judge(card, passed, now_ns);
    card->freed_ns = hm_turn_claimed(card) ? now_ns : 0;
}

static uint64_t
drain(struct hm_card *card, uint64_t now_ns)
{
    struct hm_party *party = card->holder;
    uint64_t limit = card->closed_ns + drain_ns(party);

    if (!party->drained && now_ns < limit) {
        if (now_ns >= card->closed_ns + ASK_NS)
            hm_party_excuse(party, false);
        return hm_min((int64_t)limit, (int64_t)now_ns + ASK_NS);
    }
    if (!party->drained)
        miss(party, now_ns);
    settle_slot(card, now_ns);
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

    if (!hm_gang_is(party, HM_CARD_RESERVED)) {
        close_others(card, now_ns);
        return UINT64_MAX; /* its other cards' steps go on with it */
    }
    do {
        start_slot(at->card, now_ns);
        card->touched |= at != party;
        at = hm_gang_next(at);
    } while (party->ganged && at != party);
    return now_ns;
}

/* All gates are free for a while. Then they are closed, and it is waited for all that were open. */
static uint64_t
stay_open(struct hm_card *card, uint64_t now_ns)
{
    bool open = may_be_open(card, now_ns);

    for (int i = 0; i < card->count; i++) {
        struct hm_party *party = card->party[i];

        if (open && party->wants && party->free_since_ns == 0) {
            party->gate->slots++;
            free_gate(party, hm_party_next_slot(party), now_ns);
        } else if (!open && party->free_since_ns != 0) {
            close_free_gate(party, party->free_since_ns, now_ns);
            party->leaves = true;
        }
    }
    if (open)
        return card->open_until_ns;
    card->state = HM_CARD_IDLE;
    card->closed_ns = now_ns;
    card->claimed_ns = card->freed_ns = 0;
    return now_ns;
}

static uint64_t
hand_out(struct hm_card *card, uint64_t now_ns)
{
    for (int i = 0; i < card->count; i++) {
        if (!card->party[i]->leaves)
            continue;
        card->holder = card->party[i];
        card->holder->leaves = false;
        card->holder->charged_before_ns = card->holder->gate->charged_ns;
        card->opened_ns = card->closed_ns;
        card->state = HM_CARD_DRAINING;
        return now_ns;
    }
    card->holder = hm_turn_choose(card, now_ns);
    if (card->holder == NULL)
        return hm_turn_opening_ns(card, now_ns);
    card->rank = hm_turn_rank(card, card->holder, now_ns);
    if (card->rank >= 2) /* it is its turn */
        hm_turn_advance(card);
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
        case HM_CARD_OPEN:
            next = stay_open(card, now_ns);
            break;
        }
    }
    return card->touched ? now_ns : next;
}

bool
hm_card_hurries(const struct hm_card *card, uint64_t now_ns)
{
    return card->holder != NULL && !hm_party_is_latency(card->holder) &&
           now_ns < card->latency_until_ns;
}

bool
hm_card_add(struct hm_card *card, struct hm_party *party, uint64_t now_ns)
{
    if (card->count == HM_PARTIES)
        return false;
    party->card = card;
    party->percent = hm_party_percent(party);
    if (party->gang == NULL)
        party->gang = party;
    card->open_until_ns = card->sparse = 0; /* another load */
    card->party[card->count++] = party;
    card->virtual_ns = hm_max(card->virtual_ns, party->gate->virtual_ns);
    hm_party_look(party);
    if (hm_party_state(party) == HM_GATE_CLOSED && party->drained)
        return true;
    /* Another arbiter left it so: it is at work, maybe beside others, until they are drained one by one. */
    if (card->holder == NULL && card->state != HM_CARD_OPEN) {
        card->holder = party;
        card->rank = hm_party_is_batch(party) ? 3 : 2;
        card->state = hm_party_state(party) == HM_GATE_CLOSED ? HM_CARD_DRAINING : HM_CARD_HELD;
        card->opened_ns = card->closed_ns = now_ns;
        if (party->gate->charged_until_ns + LONGEST_GAP_NS > now_ns) /* nobody charged it since */
            card->opened_ns = hm_min(party->gate->charged_until_ns, now_ns);
    } else {
        set_gate(party, hm_party_slot(party), HM_GATE_CLOSED);
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
    card->open_until_ns = card->sparse = 0; /* another load */
    while (before->gang != party)
        before = before->gang;
    before->gang = party->gang;
    if (card->holder == party) {
        card->holder = NULL;
        card->state = HM_CARD_IDLE;
    }
}
