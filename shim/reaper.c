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
#define STALE_TAIL_NS \
    (150 * HM_US) /* nothing came after it for so long: it gets its mark from us */
#define SHORT_WINDOW_NS (500 * HM_US)
#define EARLY_NS (60 * HM_US) /* a nap may take so much longer than it should */
#define LATE_NS (200 * HM_US)
#define STUCK_NS \
    (25 * HM_MS) /* what has not ended by then is charged all the same: it may wait for the host */
#define LONGEST_START_NS (300 * HM_US)
#define SLACK_NS 1UL /* of our own naps, instead of 50 us */

static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* held while we touch the driver's objects */
static bool runs;              /* atomic */
static uint32_t wanted;        /* futex word: raised to wake the reaper */
static bool may_spin;          /* we have processors to spare */
static bool sleeps;            /* it may be in a long sleep; atomic */

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

static void
enter_context(CUcontext context)
{
    static CUcontext current; /* under the mutex */

    if (context != current && REAL(cuCtxSetCurrent(context)) == CUDA_SUCCESS)
        current = context;
}

/*
 * The first work after a pause has ended. What it took longer than it usually does went to the launch, and to the card's
 * change from one tenant to another: that is charged to nobody.
 */
static void
tell_start(struct hm_lane *lane, const struct hm_mark *mark, uint64_t now_ns)
{
    uint64_t from = lane->busy_from_ns, usual = mark->known ? now_ns - mark->cost_ns : from;

    if (usual > from + LONGEST_START_NS)
        usual = from + LONGEST_START_NS;
    __atomic_store_n(&lane->use->busy_since_ns, usual > from ? usual : from, __ATOMIC_RELEASE);
}

/* A mark has ended, or will never be known to. */
static void
finish(const struct hm_line *line, struct hm_mark *mark, uint64_t now_ns)
{
    struct hm_lane *lane = &hm_lanes[line->device];
    uint64_t begun = mark->begun_ns > lane->last_done_ns ? mark->begun_ns : lane->last_done_ns;
    bool first = __atomic_load_n(&lane->use->busy_since_ns, __ATOMIC_RELAXED) == 0;

    if (first)
        tell_start(lane, mark, now_ns);
    if (mark->work != 0 && mark->context != NULL && now_ns > begun && !(first && mark->known)) {
        hm_cost_learn(mark->work, now_ns - begun, mark->launches);
        if (mark->launches == 1 && now_ns - begun > lane->use->longest_ns)
            __atomic_store_n(&lane->use->longest_ns, now_ns - begun, __ATOMIC_RELAXED);
    }
    __atomic_fetch_sub(&lane->ahead_ns, (int64_t)mark->cost_ns, __ATOMIC_RELAXED);
    lane->last_done_ns = now_ns;
    __atomic_store_n(&lane->oldest_cost_ns, 0,
                     __ATOMIC_RELAXED); /* until we look at what is next */
    mark->launches = 0;
}

static bool
has_ended(const struct hm_mark *mark)
{
    if (mark->context == NULL)
        return true;
    enter_context(mark->context);
    return REAL(cuEventQuery(mark->event)) != CUDA_ERROR_NOT_READY;
}

/* The oldest mark waits for something else than the card, and others that came after it have ended: it makes room for them. */
static struct hm_mark *
move_behind(struct hm_line *line, struct hm_mark *oldest)
{
    struct hm_mark *end, moved = *oldest;

    if (!hm_line_hold(line))
        return oldest;
    if (line->marked - line->done == HM_MARKS) {
        hm_line_release(line);
        return oldest;
    }
    end = &line->mark[line->marked % HM_MARKS];
    *oldest = *end;
    oldest->launches = 0;
    *end = moved;
    __atomic_store_n(&line->marked, line->marked + 1, __ATOMIC_RELEASE);
    hm_line_release(line);
    return end;
}

/* Take what has ended off a line, on whatever stream. The oldest that has not is returned, NULL if there is none. */
static const struct hm_mark *
collect(struct hm_line *line, uint64_t now_ns)
{
    uint32_t marked = __atomic_load_n(&line->marked, __ATOMIC_ACQUIRE);
    struct hm_mark *first = NULL;
    bool overtaken = false;

    for (uint32_t i = line->done; i != marked; i++) {
        struct hm_mark *mark = &line->mark[i % HM_MARKS];

        if (mark->launches == 0 || (first != NULL && mark->stream == first->stream))
            continue;
        if (has_ended(mark)) {
            finish(line, mark, hm_now_ns());
            overtaken = first != NULL;
        } else if (first == NULL) {
            first = mark;
        }
    }
    if (first != NULL && now_ns > first->begun_ns + 2 * first->cost_ns + STUCK_NS) {
        __atomic_fetch_sub(&hm_lanes[line->device].ahead_ns, (int64_t)first->cost_ns,
                           __ATOMIC_RELAXED);
        first->cost_ns = 0; /* nobody waits for room until this ends */
        if (overtaken && first == &line->mark[line->done % HM_MARKS])
            first = move_behind(line, first);
    }
    while (line->done != __atomic_load_n(&line->marked, __ATOMIC_ACQUIRE) &&
           line->mark[line->done % HM_MARKS].launches == 0)
        __atomic_store_n(&line->done, line->done + 1,
                         __ATOMIC_RELEASE); /* partner: hm_window_mark */
    return first;
}

/* Put a mark behind a tail, for its thread. */
static bool
mark_tail(struct hm_line *line, struct hm_tail *tail)
{
    if (tail->stream == CU_STREAM_PER_THREAD)
        tail->stream = NULL; /* to us that handle is our own stream */
    enter_context(tail->context);
    return hm_window_mark_apart(line, tail);
}

/* Mark what has no mark yet on other streams of the thread than its last. */
static void
mark_notes(struct hm_line *line)
{
    for (uint32_t i = 0; i < line->noted; i++)
        if (line->note[i].launches > 0 && !mark_tail(line, &line->note[i]))
            return;
    line->noted = 0;
}

/*
 * The thread of a line may not come back to mark what it launched. True: something of it is unmarked, or about to be.
 * While the gate is free that is so all the time, and not looked at until it closes.
 */
static bool
tidy(struct hm_line *line, bool over, bool free, uint64_t now_ns)
{
    bool noted = line->noted > 0 && !free,
         stale = line->tail.launches > 0 && now_ns > line->tail.begun_ns + STALE_TAIL_NS, open;

    if (!over && !stale && !noted)
        return line->tail.launches > 0 || __atomic_load_n(&line->in_launch, __ATOMIC_ACQUIRE) != 0;
    if (!hm_line_hold(line))
        return true;
    if (line->tail.launches > 0)
        mark_tail(line, &line->tail);
    if (noted)
        mark_notes(line);
    open = line->tail.launches > 0 || (noted && line->noted > 0);
    hm_line_release(line);
    return open;
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

static struct sight
look(int device, uint64_t now_ns)
{
    struct hm_lane *lane = &hm_lanes[device];
    struct sight sight = {0};
    const struct hm_mark *oldest = NULL;
    uint32_t word, slot;
    bool over;

    hm_lane_choose(device, now_ns);
    word = __atomic_load_n(&lane->gate->word, __ATOMIC_SEQ_CST);
    slot = __atomic_load_n(&lane->use->entered, __ATOMIC_SEQ_CST);
    over = slot != __atomic_load_n(&lane->use->drained, __ATOMIC_RELAXED) &&
           ((word & HM_GATE_STATES) == HM_GATE_CLOSED || word / HM_GATE_SLOT != slot);
    for (struct hm_line *line = hm_line_first(); line != NULL; line = line->next) {
        const struct hm_mark *first;

        if (line->device != device)
            continue;
        sight.outstanding |=
            tidy(line, over, (word & HM_GATE_STATES) == HM_GATE_FREE && !over, now_ns);
        first = collect(line, now_ns);
        if (first != NULL && (oldest == NULL || first->begun_ns < oldest->begun_ns))
            oldest = first;
    }
    sight.outstanding |= oldest != NULL;
    sight.hurry = over;
    sight.tense = __atomic_load_n(&lane->gate->window_ns, __ATOMIC_RELAXED) < SHORT_WINDOW_NS;
    if (oldest != NULL) {
        uint64_t since =
            oldest->begun_ns > lane->last_done_ns ? oldest->begun_ns : lane->last_done_ns;

        __atomic_store_n(&lane->oldest_since_ns, since, __ATOMIC_RELAXED);
        __atomic_store_n(&lane->oldest_cost_ns, oldest->cost_ns, __ATOMIC_RELAXED);
    }
    if (!sight.outstanding) /* whatever was dropped on the way */
        __atomic_store_n(&lane->ahead_ns, 0, __ATOMIC_RELAXED);
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
    int64_t left = (int64_t)(lane->oldest_since_ns + lane->oldest_cost_ns - now_ns);
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
    enter_context(NULL);
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
