/*
 * The thread of a process that sees its work end: it asks the driver for marks, tells the arbiter that a slot is drained
 * or that the process is idle, and lets go on who waits for room. It sleeps while nothing is in flight.
 */
#include "meter.h"
#include "thread.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>

#define STACK_BYTES 131072
#define SHORTEST_NAP_NS (10 * HM_US)
#define LONGEST_NAP_NS (200 * HM_US)
#define SHORT_WINDOW_NS (500 * HM_US)
#define EARLY_NS (60 * HM_US) /* a nap may take so much longer than it should */
#define LATE_NS (200 * HM_US)
/* What has not ended by then is charged all the same: it may wait for the host. */
#define STUCK_NS (25 * HM_MS)
#define SAMPLE_NS (50 * HM_US)
#define SLACK_NS 1UL /* of our own naps, instead of 50 us */

/* Held while we touch the driver's objects. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static bool runs;       /* atomic */
static uint32_t wanted; /* futex word: raised to wake the reaper */
static bool may_spin;   /* we have processors to spare */
static bool sleeps;     /* it may be in a long sleep; atomic */

/* What one look at a lane found. */
struct sight {
    bool outstanding; /* work that has not ended, or may come any moment */
    bool hurry;       /* somebody waits for its end */
    bool tense;       /* somebody may do so at any moment, who has no time */
};

void
hm_reaper_lock(void)
{
    pthread_mutex_lock(&mutex);
}

void
hm_reaper_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

void
hm_reaper_wake(void)
{
    if (__atomic_load_n(&sleeps, __ATOMIC_SEQ_CST)) /* partner: rest */
        hm_futex_ring(&wanted);
}

/* Where no mark said when the card began, it is the first launch. */
static void
settle_start(struct hm_lane *lane)
{
    if (lane->use->busy_since_ns == 0)
        __atomic_store_n(&lane->use->busy_since_ns, lane->busy_from_ns, __ATOMIC_RELAXED);
}

/* Nothing has been in flight for a while. */
static void
become_idle(struct hm_lane *lane)
{
    settle_start(lane);
    __atomic_store_n(&lane->use->idle_since_ns, lane->last_done_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->use->busy, 0,
                     __ATOMIC_SEQ_CST); /* partner: who launches looks at busy after in_launch */
    hm_futex_ring(&hm_tenant.usage->bell);
}

static void
become_busy(struct hm_lane *lane, uint64_t now_ns)
{
    __atomic_store_n(&lane->busy_from_ns, now_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->use->busy_since_ns, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->use->busy, 1, __ATOMIC_SEQ_CST);
    hm_futex_ring(&hm_tenant.usage->bell);
}

static void
become_drained(struct hm_lane *lane, uint32_t slot, uint64_t now_ns)
{
    uint64_t last = lane->last_done_ns;

    settle_start(lane);
    __atomic_store_n(&lane->use->idle_since_ns, last > 0 ? last : now_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->use->busy, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->use->drained, slot, __ATOMIC_SEQ_CST); /* partner: the arbiter */
    hm_futex_ring(&hm_tenant.usage->bell);
}

/* Take note of how long the card is at work for us, which its possession does not say: a program may be slower than it. */
static void
sample(struct hm_lane *lane, int device, bool works, uint64_t now_ns)
{
    for (struct hm_line *line = hm_line_first(); line != NULL && !works; line = line->next)
        works = line->device == device && hm_line_works(line, lane->worked);
    if (lane->sampled_ns > 0)
        lane->worked_ns += (now_ns - lane->sampled_ns) * ((uint64_t)lane->worked + works) / 2;
    lane->sampled_ns = now_ns;
    lane->worked = works;
    __atomic_store_n(&lane->use->worked_us, (uint32_t)(lane->worked_ns / HM_US), __ATOMIC_RELAXED);
}

/*
 * Nothing is in flight: what is still counted was dropped on the way. That is known only of a moment in which nobody was in a
 * launch, and no launch has ended since we began to look; what is launched after it counts.
 */
static void
drop_rest(struct hm_lane *lane, int device, uint64_t launches)
{
    int64_t rest = __atomic_load_n(&lane->ahead_ns, __ATOMIC_SEQ_CST);

    if (rest == 0)
        return;
    for (struct hm_line *line = hm_line_first(); line != NULL; line = line->next)
        if (line->device == device && __atomic_load_n(&line->in_launch, __ATOMIC_SEQ_CST) != 0)
            return;
    if (__atomic_load_n(&lane->use->launches, __ATOMIC_ACQUIRE) == launches)
        __atomic_fetch_sub(&lane->ahead_ns, rest, __ATOMIC_RELAXED);
}

static struct sight
look(int device, uint64_t now_ns)
{
    struct hm_lane *lane = &hm_lanes[device];
    struct sight sight = {0};
    const struct hm_mark *oldest = NULL;
    uint32_t word, slot;
    uint64_t launches = __atomic_load_n(&lane->use->launches, __ATOMIC_ACQUIRE);
    bool over, free;

    hm_lane_choose(device, now_ns);
    word = __atomic_load_n(&lane->gate->word, __ATOMIC_SEQ_CST);
    slot = __atomic_load_n(&lane->use->entered, __ATOMIC_SEQ_CST);
    over = slot != __atomic_load_n(&lane->use->drained, __ATOMIC_RELAXED) &&
           ((word & HM_GATE_STATES) == HM_GATE_CLOSED || word / HM_GATE_SLOT != slot);
    if (over) /* partner: hm_window_follows, whose thread is in a launch by then */
        __atomic_store_n(&lane->settled, slot, __ATOMIC_SEQ_CST);
    free = (word & HM_GATE_STATES) == HM_GATE_FREE && !over;
    for (struct hm_line *line = hm_line_first(); line != NULL; line = line->next) {
        const struct hm_mark *first;

        if (line->device != device)
            continue;
        sight.outstanding |= hm_line_tidy(line, over, free, now_ns);
        first = hm_line_collect(line, now_ns);
        if (first != NULL && (oldest == NULL || first->begun_ns < oldest->begun_ns))
            oldest = first;
    }
    sight.outstanding |= oldest != NULL;
    if (over && sight.outstanding)
        __atomic_store_n(&lane->settled, slot - 1, __ATOMIC_SEQ_CST);
    sight.hurry = over;
    sight.tense = __atomic_load_n(&lane->gate->window_ns, __ATOMIC_RELAXED) < SHORT_WINDOW_NS;
    if (oldest != NULL) {
        uint64_t since =
            oldest->begun_ns > lane->last_done_ns ? oldest->begun_ns : lane->last_done_ns;

        __atomic_store_n(&lane->oldest_since_ns, since, __ATOMIC_RELAXED);
        __atomic_store_n(&lane->oldest_cost_ns, oldest->cost_ns, __ATOMIC_RELAXED);
    }
    if (!free && sight.outstanding && now_ns >= lane->sampled_ns + SAMPLE_NS)
        sample(lane, device, oldest != NULL, now_ns);
    if (!sight.outstanding)
        drop_rest(lane, device, launches);
    if (oldest != NULL && now_ns > lane->busy_from_ns + STUCK_NS)
        settle_start(lane);
    if (!sight.outstanding && over) {
        become_drained(lane, slot, now_ns);
    } else if (sight.outstanding && (word & HM_GATE_STATES) == HM_GATE_WINDOWED &&
               __atomic_load_n(&lane->use->busy, __ATOMIC_RELAXED) == 0) {
        become_busy(lane, now_ns); /* a launch came between two looks */
    } else if (!sight.outstanding && __atomic_load_n(&lane->use->busy, __ATOMIC_RELAXED) != 0) {
        if (now_ns > lane->last_done_ns + HM_IDLE_NS)
            become_idle(lane);
        sight.outstanding = true; /* one more look: a launch may have come that still saw us busy */
    }
    if (free || !sight.outstanding) {
        lane->sampled_ns = 0;
        lane->worked = false;
    }
    return sight;
}

/* Let those go on who wait for room. */
static void
tell_progress(struct hm_lane *lane)
{
    static uint64_t told[HM_DEVICES]; /* last_done_ns then; only the reaper is here */
    uint64_t *before = &told[lane - hm_lanes];

    if (*before == lane->last_done_ns)
        return;
    *before = lane->last_done_ns;
    __atomic_fetch_add(&lane->progress, 1, __ATOMIC_SEQ_CST); /* partner: hm_window_wait */
    if (__atomic_load_n(&lane->crowd, __ATOMIC_SEQ_CST) > 0)
        hm_futex_wake(&lane->progress);
}

/* How long until it is worth looking again. Around the end of what somebody waits for: at once. */
static int64_t
nap_ns(const struct hm_lane *lane, struct sight sight, uint64_t now_ns)
{
    uint64_t cost = lane->oldest_cost_ns * (lane->sharers > 0 ? lane->sharers : 1);
    int64_t left = (int64_t)(lane->oldest_since_ns + cost - now_ns);
    int64_t nap = sight.hurry ? left - EARLY_NS : left / 2;

    if ((sight.tense && may_spin) || (sight.hurry && left < EARLY_NS && left > -LATE_NS))
        return 0;
    if (nap < SHORTEST_NAP_NS)
        return SHORTEST_NAP_NS;
    return nap < LONGEST_NAP_NS ? nap : LONGEST_NAP_NS;
}

/* Sleep until a gate changes, a thread becomes busy or the supervisor comes back. */
static void
rest(uint32_t seen, const uint32_t *words)
{
    struct hm_watch watches[HM_DEVICES + 2] = {{&wanted, seen},
                                               {&hm_tenant.limits->epoch, words[HM_DEVICES]}};
    int count = 2;

    for (int i = 0; i < HM_DEVICES; i++)
        if (__atomic_load_n(&hm_lanes[i].use, __ATOMIC_ACQUIRE) != NULL)
            watches[count++] = (struct hm_watch){&hm_lanes[i].gate->word, words[i]};
    hm_futex_wait_any(watches, count, HM_FOREVER);
}

/* One look at all lanes. Returns how long to nap, for a change of *lane's gate at most; HM_FOREVER: nothing is in flight. */
static int64_t
look_at_all(uint32_t *words, int *lane_at)
{
    uint64_t now_ns = hm_now_ns();
    int64_t nap = HM_FOREVER;

    words[HM_DEVICES] = __atomic_load_n(&hm_tenant.limits->epoch, __ATOMIC_ACQUIRE);
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < HM_DEVICES && __atomic_load_n(&runs, __ATOMIC_ACQUIRE); i++) {
        struct hm_lane *lane = &hm_lanes[i];
        struct sight sight;

        if (__atomic_load_n(&lane->use, __ATOMIC_ACQUIRE) == NULL)
            continue;
        words[i] = __atomic_load_n(&lane->gate->word, __ATOMIC_ACQUIRE);
        sight = look(i, now_ns);
        tell_progress(lane);
        if (sight.outstanding) {
            int64_t own = nap_ns(lane, sight, now_ns);

            if (own < nap) {
                nap = own;
                *lane_at = i;
            }
            if (lane->gate == &hm_tenant.usage->device[i].gate)
                hm_leader_see(now_ns);
        }
    }
    hm_mark_enter(NULL);
    pthread_mutex_unlock(&mutex);
    return nap;
}

static void *
reaper(void *unused)
{
    CUstreamCaptureMode relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    uint32_t words[HM_DEVICES + 1];

    (void)unused;
    prctl(PR_SET_NAME, "hamirt-reaper");
    prctl(PR_SET_TIMERSLACK, SLACK_NS);
    may_spin = hm_may_spin();
    REAL(cuThreadExchangeStreamCaptureMode(&relaxed));
    while (__atomic_load_n(&runs, __ATOMIC_ACQUIRE)) {
        uint32_t seen = __atomic_load_n(&wanted, __ATOMIC_ACQUIRE);
        int64_t nap;
        int lane = 0;

        __atomic_store_n(&sleeps, true, __ATOMIC_SEQ_CST); /* partner: hm_reaper_wake */
        nap = look_at_all(words, &lane);
        if (nap == HM_FOREVER) {
            rest(seen, words);
        } else {
            __atomic_store_n(&sleeps, false, __ATOMIC_RELAXED);
            hm_futex_wait(&hm_lanes[lane].gate->word, words[lane], nap);
        }
    }
    return NULL;
}

/* Before the driver's own end: after this we don't call it any more, and nothing waits for us. */
static void
at_exit(void)
{
    hm_gate_give_up();
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&runs, false, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < HM_DEVICES; i++)
        if (hm_lanes[i].use != NULL)
            become_drained(&hm_lanes[i], hm_lanes[i].use->entered, hm_now_ns());
}

void
hm_reaper_start(void)
{
    if (__atomic_exchange_n(&runs, true, __ATOMIC_ACQ_REL))
        return;
    atexit(at_exit);
    if (!hm_thread_start(reaper, STACK_BYTES))
        hm_gate_give_up(); /* nobody would see anything end */
}

void
hm_reaper_after_fork_child(void)
{
    runs = false;
    sleeps = false;
    pthread_mutex_init(&mutex, NULL);
}
