/* What the reaper does with a line: marks what its thread left unmarked, and takes off it what has ended. */
#include "meter.h"

/* Nothing came after a tail for so long: it gets its mark from us. */
#define STALE_TAIL_NS (150 * HM_US)
/* What has not ended by then makes room all the same: it may wait for the host. */
#define STUCK_NS (25 * HM_MS)
#define LONGEST_START_NS (300 * HM_US)

void
hm_mark_enter(CUcontext context)
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

/* How many of the tenant's processes are at work at the same time, we among them: the card divides its time. */
static uint32_t
count_sharers(int device)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < hm_slots(); i++)
        count += __atomic_load_n(&hm_tenant.usage->slot[i].taken, __ATOMIC_RELAXED) != 0 &&
                 __atomic_load_n(&hm_tenant.usage->slot[i].use[device].busy, __ATOMIC_RELAXED) != 0;
    return count > 0 ? count : 1;
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
    if (mark->tells && mark->context != NULL && now_ns > begun && !(first && mark->known)) {
        lane->sharers = count_sharers(line->device);
        hm_cost_learn(mark, (now_ns - begun) / lane->sharers, begun > mark->begun_ns);
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
    hm_mark_enter(mark->context);
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
const struct hm_mark *
hm_line_collect(struct hm_line *line, uint64_t now_ns)
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
    hm_mark_enter(tail->context);
    return hm_window_mark_apart(line, tail);
}

/* Mark what has no mark yet on other streams of the thread than its last. */
static void
mark_notes(struct hm_line *line)
{
    for (uint32_t i = 0; i < line->noted; i++)
        if (line->note[i].launches > 0 && !mark_tail(line, &line->note[i]))
            return;
    __atomic_store_n(&line->noted, 0, __ATOMIC_RELAXED);
}

/*
 * The thread of a line may not come back to mark what it launched. True: something of it is unmarked, or about to be.
 * While the gate is free that is so all the time, and not looked at until it closes.
 */
bool
hm_line_tidy(struct hm_line *line, bool over, bool free, uint64_t now_ns)
{
    bool noted = __atomic_load_n(&line->noted, __ATOMIC_RELAXED) > 0 && !free,
         tailed = __atomic_load_n(&line->tail.launches, __ATOMIC_RELAXED) > 0, open;
    uint64_t begun_ns = __atomic_load_n(&line->tail.begun_ns, __ATOMIC_RELAXED);

    if (!over && !noted && !(tailed && now_ns > begun_ns + STALE_TAIL_NS))
        return tailed || __atomic_load_n(&line->in_launch, __ATOMIC_ACQUIRE) != 0;
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

bool
hm_line_works(struct hm_line *line, bool before)
{
    const struct hm_tail *tail = &line->tail;
    bool works = before;

    if (__atomic_load_n(&tail->launches, __ATOMIC_RELAXED) == 0)
        return false;
    if (!hm_line_hold(line))
        return before;
    if (tail->stream != NULL && tail->stream != CU_STREAM_PER_THREAD) {
        hm_capture_lock(); /* in a capture the question would end it */
        if (hm_capture_count() == 0) {
            hm_mark_enter(tail->context);
            works = REAL(cuStreamQuery(tail->stream)) == CUDA_ERROR_NOT_READY;
        }
        hm_capture_unlock();
    }
    hm_line_release(line);
    return works;
}
