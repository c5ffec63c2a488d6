/* How much a process may have in flight, counted in predicted GPU time, and the marks that say when it ends. */
#include "quick.h"

#include <string.h>

/* The window's part that the next launch comes ahead of the end of the last; a short one has none. */
#define LEAD 4
#define LEAST_WAIT_NS (20 * HM_US)
#define SHORT_WINDOW_NS (500 * HM_US)
#define LONGEST_WINDOW_NS (12 * HM_MS) /* HM_MARKS are enough for it */
/* A part of what is in flight at the end of a slot may follow on it, while there is so much left. */
#define FOLLOW 4
#define MOST_FOLLOW_NS (2 * HM_MS)
#define LEAST_LEFT_NS (100 * HM_US)
#define LOOKS 10000           /* at what the reaper says, some 50 us */
#define SPIN_NS (100 * HM_US) /* of short windows: a sleep takes at least so long */

/* Predicted GPU time that is still to come, ns. */
static int64_t
remaining(const struct hm_lane *lane)
{
    int64_t ahead = __atomic_load_n(&lane->ahead_ns, __ATOMIC_RELAXED);
    uint64_t since = __atomic_load_n(&lane->oldest_since_ns, __ATOMIC_RELAXED),
             cost = __atomic_load_n(&lane->oldest_cost_ns, __ATOMIC_RELAXED), now = hm_now_ns();
    int64_t done = now > since ? (int64_t)(now - since) : 0;

    return ahead - (done < (int64_t)cost ? done : (int64_t)cost);
}

/* Short of the room, how long the card still has to work until there is; 0:
 * there is room. */
static int64_t
missing(const struct hm_lane *lane, uint64_t window_ns, uint64_t cost_ns)
{
    int64_t left = remaining(lane),
            least = window_ns < SHORT_WINDOW_NS ? 0 : (int64_t)(window_ns / LEAD),
            fits = (int64_t)window_ns - (int64_t)cost_ns;

    if (fits > least)
        least = fits;
    return left > least ? left - least : 0;
}

/* How much work may come behind `left_ns` of it that a slot leaves. */
static int64_t
may_follow(int64_t left_ns)
{
    return hm_max(hm_min(left_ns / FOLLOW, MOST_FOLLOW_NS), 0);
}

/*
 * To the end of the slot whatever is launched delays nobody, and what is short may follow on it. A program that is held back
 * can't make its next work ready, and the card waits for it then.
 */
uint64_t
hm_window_ns(const struct hm_lane *lane)
{
    const struct hm_gate *gate = hm_gate_of(lane);
    uint64_t window = __atomic_load_n(&gate->window_ns, __ATOMIC_RELAXED),
             ends = __atomic_load_n(&gate->ends_ns, __ATOMIC_RELAXED),
             now = ends > 0 ? hm_now_ns() : 0, reaches;

    if (ends <= now)
        return window;
    reaches = ends - now + (uint64_t)may_follow(remaining(lane));
    return reaches < window ? window : reaches < LONGEST_WINDOW_NS ? reaches : LONGEST_WINDOW_NS;
}

bool
hm_window_room(const struct hm_line *line, const struct hm_lane *lane, uint64_t window_ns,
               uint64_t cost_ns)
{
    int64_t ahead = __atomic_load_n(&lane->ahead_ns, __ATOMIC_RELAXED);

    if (!hm_line_has_marks(line))
        return false;
    return ahead <= 0 || ahead + (int64_t)cost_ns <= (int64_t)window_ns ||
           missing(lane, window_ns, cost_ns) == 0;
}

bool
hm_window_overshoots(const struct hm_lane *lane)
{
    uint64_t ends = __atomic_load_n(&hm_gate_of(lane)->ends_ns, __ATOMIC_RELAXED),
             now = hm_now_ns();

    return ends > now && remaining(lane) > (int64_t)(ends - now);
}

/*
 * A program makes its next work ready while the card is at the last: what comes behind that belongs to it, such as the tokens'
 * choice behind a model's step. Held back, it would have the card idle at the beginning of its next slot.
 */
bool
hm_window_follows(struct hm_lane *lane, uint32_t slot, uint64_t cost_ns)
{
    int64_t left = remaining(lane), cost = (int64_t)cost_ns;

    if (__atomic_load_n(&hm_gate_of(lane)->ends_ns, __ATOMIC_RELAXED) == 0 || left < LEAST_LEFT_NS)
        return false;
    /* partner: the reaper, which is soon done with its look and finds that all has ended, or that we are in a launch */
    for (int i = 0; __atomic_load_n(&lane->settled, __ATOMIC_SEQ_CST) == slot; i++)
        if (i > LOOKS || __atomic_load_n(&lane->use->drained, __ATOMIC_SEQ_CST) == slot)
            return false;
    if (__atomic_load_n(&lane->followed, __ATOMIC_RELAXED) != slot) {
        __atomic_store_n(&lane->after_ns, may_follow(left), __ATOMIC_RELAXED);
        __atomic_store_n(&lane->followed, slot, __ATOMIC_RELAXED);
    }
    return __atomic_fetch_sub(&lane->after_ns, cost, __ATOMIC_RELAXED) >= cost;
}

void
hm_window_wait(struct hm_lane *lane, uint64_t window_ns, uint64_t cost_ns)
{
    uint32_t progress = __atomic_load_n(&lane->progress, __ATOMIC_ACQUIRE);
    int64_t needed = missing(lane, window_ns, cost_ns);
    bool spins = window_ns < SHORT_WINDOW_NS;

    if (spins && needed < SPIN_NS) {
        uint64_t until = hm_now_ns() + (uint64_t)needed;

        while (hm_now_ns() < until &&
               __atomic_load_n(&lane->progress, __ATOMIC_ACQUIRE) == progress)
            ;
        return;
    }
    hm_reaper_wake();
    __atomic_fetch_add(&lane->crowd, 1,
                       __ATOMIC_SEQ_CST); /* partner: the reaper, after it raised progress */
    hm_futex_wait(&lane->progress, progress,
                  spins                    ? needed - SPIN_NS / 2
                  : needed > LEAST_WAIT_NS ? needed
                                           : LEAST_WAIT_NS);
    __atomic_fetch_sub(&lane->crowd, 1, __ATOMIC_RELAXED);
}

/* An event of this context to record, in the place of the next mark. False: the
 * driver gives none. */
static bool
prepare(struct hm_mark *mark, CUcontext context)
{
    if (mark->context == context)
        return true;
    if (mark->context != NULL)
        REAL(cuEventDestroy_v2(mark->event));
    mark->context = NULL;
    if (REAL(cuEventCreate(&mark->event, CU_EVENT_DISABLE_TIMING)) != CUDA_SUCCESS)
        return false;
    mark->context = context;
    return true;
}

void
hm_window_mark(struct hm_line *line, struct hm_tail *tail)
{
    struct hm_mark *mark = &line->mark[line->marked % HM_MARKS];
    struct hm_lane *lane = &hm_lanes[line->device];
    CUcontext context = NULL;

    if (line->marked - __atomic_load_n(&line->done, __ATOMIC_ACQUIRE) == HM_MARKS)
        return; /* hm_window_room does not let it come to this */
    REAL(cuCtxGetCurrent(&context));
    if (context != tail->context || !prepare(mark, context) ||
        (tail->stream != NULL ? REAL(cuEventRecord(mark->event, tail->stream))
                              : REAL(cuCtxRecordEvent(context, mark->event))) != CUDA_SUCCESS) {
        __atomic_fetch_sub(&lane->ahead_ns, (int64_t)tail->cost_ns, __ATOMIC_RELAXED);
        /* nobody can tell when it ends: it counts as ended */
        __atomic_store_n(&tail->launches, 0, __ATOMIC_RELAXED);
        return;
    }
    mark->stream = tail->stream;
    mark->begun_ns = tail->begun_ns;
    mark->cost_ns = tail->cost_ns;
    mark->launches = tail->launches;
    mark->known = tail->known;
    mark->tells = tail->tells;
    memcpy(mark->kind, tail->kind, sizeof(mark->kind));
    __atomic_store_n(&tail->launches, 0, __ATOMIC_RELAXED); /* partner: hm_line_tidy */
    tail->cost_ns = 0;
    __atomic_store_n(&line->marked, line->marked + 1, __ATOMIC_RELEASE); /* partner: the reaper */
}

/*
 * Not while anything captures: a record would go into the graph, or end a
 * capture that the stream has to do with. Until then the work does not count as
 * ahead of anybody: who captures may be waiting for him.
 */
bool
hm_window_mark_apart(struct hm_line *line, struct hm_tail *tail)
{
    bool may;

    hm_capture_lock();
    may = hm_capture_count() == 0;
    if (may)
        hm_window_mark(line, tail);
    hm_capture_unlock();
    if (!may) {
        __atomic_fetch_sub(&hm_lanes[line->device].ahead_ns, (int64_t)tail->cost_ns,
                           __ATOMIC_RELAXED);
        tail->cost_ns = 0;
    }
    return may && tail->launches == 0;
}
