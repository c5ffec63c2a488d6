/*
 * Without a supervisor a capped tenant arbitrates for itself: one of its processes, the leader, does what the supervisor
 * would do, through the gates of the usage page. What it has to remember is there too, so that when it dies or stops the
 * next one goes on where it was. Tenants are not arbitrated against each other then.
 */
#include "arbiter.h"
#include "meter.h"
#include "thread.h"

#include <string.h>
#include <sys/prctl.h>

#define LEASE_NS (50 * HM_MS)
#define RENEW_NS (10 * HM_MS)
#define LONGEST_VACANCY_NS (200 * HM_MS)
#define LONGEST_AGO_NS (INT64_C(5000) * HM_MS)
#define LONGEST_PAUSE_NS \
    (500 * HM_MS) /* a program that stood still for longer would be taken to hang */
#define STACK_BYTES 131072
#define FIRST_SLOT 0x20000000u /* no slot of the supervisor's has such a number */

static struct hm_card cards[HM_DEVICES];
static struct hm_party parties[HM_DEVICES];
static uint64_t last_lease_ns; /* when that of the last leader ended; whoever takes office */
static uint32_t called;        /* futex word: raised when this process has become the leader */
static bool runs;              /* atomic */

/* Who leads stands in the first device's gate, for all. */
static struct hm_gate *
office(void)
{
    return &hm_tenant.usage->device[0].gate;
}

static uint32_t
own_mark(void)
{
    const struct hm_slot *slot = hm_slot();

    return slot != NULL ? 1 + (uint32_t)(slot - hm_tenant.usage->slot) : 0;
}

static bool
leads(void)
{
    uint32_t mine = own_mark();

    return mine != 0 && __atomic_load_n(&office()->leader, __ATOMIC_ACQUIRE) == mine &&
           __atomic_load_n(&hm_tenant.limits->lease_ns, __ATOMIC_ACQUIRE) <= hm_now_ns();
}

static bool
slot_lives(void *unused, int slot)
{
    (void)unused;
    return hm_region_slot_lives(slot);
}

/* The last leader died or stopped at work: its tenant was not given the credit of the time since. */
static void
make_up(struct hm_gate *gate, const struct hm_limit *limit, uint64_t vacant_ns, uint64_t now_ns)
{
    if (vacant_ns > LONGEST_VACANCY_NS || gate->credited_ns == 0)
        return;
    gate->credit_ns += (int64_t)(now_ns - gate->credited_ns) * limit->time_percent / 100;
    gate->credited_ns = now_ns;
}

/*
 * The supervisor died of late: what the tenant owed it is owed still, and so is the time since, if its gate was left open,
 * for until the lease ended nobody counted it; as much of both as can be paid off in a short while.
 */
static void
inherit(struct hm_gate *gate, const struct hm_limit *limit, uint64_t now_ns)
{
    const struct hm_gate *old = &limit->gate;
    int64_t since_ns = (int64_t)(now_ns - old->credited_ns), credit_ns,
            most_ns = LONGEST_PAUSE_NS * limit->time_percent / 100;

    if (old->credited_ns <= gate->credited_ns || since_ns > LONGEST_AGO_NS)
        return;
    credit_ns = old->credit_ns + since_ns * limit->time_percent / 100;
    if ((old->word & HM_GATE_STATES) != HM_GATE_CLOSED)
        credit_ns -= since_ns;
    gate->credit_ns = hm_max(hm_min(credit_ns, 0), -most_ns);
    gate->credited_ns = now_ns;
}

static void
take_office(void)
{
    uint64_t now_ns = hm_now_ns(), ended_ns = last_lease_ns;

    memset(cards, 0, sizeof(cards));
    memset(parties, 0, sizeof(parties));
    for (uint32_t i = 0; i < hm_tenant.limits->device_count; i++) {
        struct hm_gate *gate = &hm_tenant.usage->device[i].gate;

        if (gate->word == 0)
            gate->word = FIRST_SLOT * HM_GATE_SLOT | HM_GATE_CLOSED;
        parties[i] = (struct hm_party){.gate = gate,
                                       .limit = &hm_tenant.limits->device[i],
                                       .usage = hm_tenant.usage,
                                       .device = (int)i,
                                       .gang = &parties[(i + 1) % hm_tenant.limits->device_count],
                                       .lives = slot_lives};
        hm_card_add(&cards[i], &parties[i], now_ns);
        inherit(gate, parties[i].limit, now_ns);
        make_up(gate, parties[i].limit, now_ns > ended_ns ? now_ns - ended_ns : 0, now_ns);
    }
}

/* One round for all devices. Returns when the next one is due. */
static uint64_t
arbitrate(uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;

    for (uint32_t i = 0; i < hm_tenant.limits->device_count; i++) {
        uint64_t due = hm_card_step(&cards[i], now_ns);

        next = due < next ? due : next;
    }
    return next;
}

static void
lead(void)
{
    take_office();
    while (leads()) {
        struct hm_watch watches[] = {{&hm_tenant.usage->bell, 0}, {&hm_tenant.limits->epoch, 0}};
        uint64_t now_ns = hm_now_ns(), next;

        __atomic_store_n(&office()->lease_ns, now_ns + LEASE_NS, __ATOMIC_RELEASE);
        watches[0].value = __atomic_load_n(watches[0].word, __ATOMIC_SEQ_CST);
        watches[1].value = __atomic_load_n(watches[1].word, __ATOMIC_SEQ_CST);
        next = arbitrate(now_ns);
        if (next == UINT64_MAX) {
            hm_futex_wait_any(watches, 2, HM_FOREVER);
        } else {
            int64_t nap = next > now_ns ? (int64_t)(next - now_ns) : 0;

            hm_futex_wait(watches[0].word, watches[0].value, nap < RENEW_NS ? nap : RENEW_NS);
        }
    }
}

static void *
leader(void *unused)
{
    (void)unused;
    prctl(PR_SET_NAME, "hamirt-arbiter");
    prctl(PR_SET_TIMERSLACK, 1UL);
    for (;;) {
        uint32_t seen = __atomic_load_n(&called, __ATOMIC_ACQUIRE);

        if (leads())
            lead();
        else
            hm_futex_wait(&called, seen, HM_FOREVER);
    }
    return NULL;
}

void
hm_leader_see(uint64_t now_ns)
{
    uint32_t was = __atomic_load_n(&office()->leader, __ATOMIC_ACQUIRE), mine = own_mark();

    if (mine == 0 || __atomic_load_n(&office()->lease_ns, __ATOMIC_ACQUIRE) > now_ns ||
        !__atomic_compare_exchange_n(&office()->leader, &was, mine, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED))
        return;
    last_lease_ns = __atomic_exchange_n(&office()->lease_ns, now_ns + LEASE_NS, __ATOMIC_ACQ_REL);
    if (!__atomic_exchange_n(&runs, true, __ATOMIC_ACQ_REL) &&
        !hm_thread_start(leader, STACK_BYTES))
        __atomic_store_n(&runs, false,
                         __ATOMIC_RELEASE); /* another process will lead, or we try again */
    hm_futex_ring(&called);
}

void
hm_leader_after_fork_child(void)
{
    runs = false;
}
