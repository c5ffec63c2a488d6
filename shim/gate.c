#include "collective.h"
#include "quick.h"

#define LOOK_AGAIN_NS (50 * HM_MS) /* who waits looks so often whether somebody arbitrates */
#define CATCH_UP_NS (5 * HM_MS)    /* and whether another rank waits for it */
#define SPIN_NS (2 * HM_MS)        /* a latency tenant does not sleep for less */

/*
 * The gate is closed, and a process of this tenant waits on the card for something that ours has yet to launch: then we
 * go on, or neither ever ends. Only as far as the others are.
 */
static bool
is_waited_for(const struct hm_use *use)
{
    uint32_t ours = __atomic_load_n(&use->collectives, __ATOMIC_RELAXED);

    if (ours == 0 && !hm_collective_any())
        return false;
    for (uint32_t i = 0; i < hm_slots(); i++) {
        const struct hm_slot *slot = &hm_tenant.usage->slot[i];

        for (uint32_t d = 0; d < hm_tenant.limits->device_count; d++)
            if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) != 0 &&
                (int32_t)(__atomic_load_n(&slot->use[d].collectives, __ATOMIC_ACQUIRE) - ours) >
                    0 &&
                __atomic_load_n(&slot->use[d].drained, __ATOMIC_ACQUIRE) !=
                    __atomic_load_n(&slot->use[d].entered, __ATOMIC_RELAXED))
                return true;
    }
    return false;
}

static void
count_wait(int device, struct hm_use *use, uint64_t waited_ns)
{
    uint64_t us = waited_ns / HM_US;
    int bucket = us == 0 ? 0 : 64 - __builtin_clzll(us);

    if (bucket >= HM_WAITS)
        bucket = HM_WAITS - 1;
    __atomic_fetch_add(&hm_tenant.usage->device[device].waits[bucket], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&use->throttled_ns, waited_ns, __ATOMIC_RELAXED);
}

/* Streams of a thread's own can be marked by nobody else. */
static void
mark_own_notes(struct hm_line *line)
{
    hm_line_begin(line);
    for (uint32_t i = 0; i < line->noted; i++)
        if (line->note[i].stream == CU_STREAM_PER_THREAD && line->note[i].launches > 0)
            hm_window_mark_apart(line, &line->note[i]);
    hm_end_launch(line);
}

/* Until the gate is open, or opens for nobody any more. */
static void
wait_for_gate(int device, struct hm_line *line)
{
    struct hm_lane *lane = &hm_lanes[device];
    struct hm_use *use = lane->use;
    uint64_t start_ns = hm_now_ns(), now_ns = start_ns, beat_ns = start_ns;
    bool latency = hm_tenant.limits->device[device].latency_class == HM_LATENCY;

    mark_own_notes(line);
    if (__atomic_fetch_add(&use->waiting, 1, __ATOMIC_SEQ_CST) == 0)
        hm_futex_ring(&hm_tenant.usage->bell);
    for (;;) {
        const struct hm_gate *gate = hm_gate_of(lane);
        uint32_t word = __atomic_load_n(&gate->word, __ATOMIC_ACQUIRE);

        if ((word & HM_GATE_STATES) != HM_GATE_CLOSED || is_waited_for(use))
            break;
        if (gate == &hm_tenant.usage->device[device].gate)
            hm_leader_see(now_ns);
        if (!latency || now_ns - start_ns > SPIN_NS)
            hm_futex_wait(&gate->word, word, hm_collective_any() ? CATCH_UP_NS : LOOK_AGAIN_NS);
        now_ns = hm_now_ns();
        if (now_ns > beat_ns + LOOK_AGAIN_NS) { /* in case that the arbiter took us for stopped */
            beat_ns = now_ns;
            __atomic_fetch_add(&use->beats, 1, __ATOMIC_SEQ_CST);
            hm_futex_ring(&hm_tenant.usage->bell);
        }
        hm_lane_choose(device, now_ns);
    }
    __atomic_fetch_sub(&use->waiting, 1, __ATOMIC_SEQ_CST);
    count_wait(device, use, now_ns - start_ns);
}

/* The gate was open when we looked, and we have not launched in this slot. False: it is another by now. */
static bool
enter_slot(struct hm_line *line, struct hm_lane *lane, uint32_t word)
{
    __atomic_store_n(&lane->use->entered, word / HM_GATE_SLOT, __ATOMIC_SEQ_CST);
    if (hm_word_of(hm_gate_of(lane)) != word)
        return false;
    line->word = word;
    return true;
}

/* The first launch after a pause. */
static void
become_busy(int device, struct hm_lane *lane)
{
    uint64_t now_ns = hm_now_ns();

    __atomic_store_n(&lane->busy_from_ns, now_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->use->busy_since_ns, 0, __ATOMIC_RELAXED); /* the reaper's to say */
    __atomic_store_n(&lane->use->busy, 1, __ATOMIC_SEQ_CST);
    hm_futex_ring(&hm_tenant.usage->bell);
    hm_reaper_wake();
    hm_lane_choose(device, now_ns);
}

static int
current_device(void)
{
    int device = hm_device_only();

    return device >= 0 ? device : hm_device_current();
}

/* Processes of the tenant wait for each other on the card: they have to have it at the same time. */
static void
count_collective(int device, struct hm_use *use)
{
    uint32_t *ganged = &hm_tenant.usage->device[device].ganged;

    __atomic_fetch_add(&use->collectives, 1, __ATOMIC_ACQ_REL); /* partner: is_waited_for */
    if (__atomic_load_n(ganged, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(ganged, 1, __ATOMIC_RELEASE);
}

/*
 * The thread goes on with another stream, or with work that is to be measured by itself: what is long, or was never seen.
 * Where the tail can't be marked now, it becomes a note, for the reaper.
 */
static void
put_aside(struct hm_line *line)
{
    if (hm_window_mark_apart(line, &line->tail))
        return;
    hm_line_note(line, line->tail.stream, line->tail.context);
    __atomic_store_n(&line->tail.launches, 0, __ATOMIC_RELAXED);
}

/* The slot in which the thread launched last is over, or soon will be, and this belongs to it all the same. */
static bool
follows(const struct hm_pass *pass, struct hm_lane *lane, uint32_t word)
{
    const struct hm_line *line = pass->line;

    return line->word == (word | HM_GATE_WINDOWED) && hm_line_has_marks(line) &&
           hm_window_follows(lane, word / HM_GATE_SLOT, pass->cost_ns);
}

/* The gate lets this launch through to a card of which we mind how much it has to do. False: there is enough. */
static bool
pass_windowed(struct hm_pass *pass, struct hm_lane *lane)
{
    struct hm_line *line = pass->line;
    uint64_t window_ns = __atomic_load_n(&hm_gate_of(lane)->window_ns, __ATOMIC_RELAXED);

    if (HM_UNLIKELY(__atomic_load_n(&lane->use->busy, __ATOMIC_SEQ_CST) == 0))
        become_busy(line->device, lane);
    if (HM_LIKELY(hm_window_room(line, lane, window_ns, pass->cost_ns)))
        return true;
    window_ns = hm_window_ns(lane);
    if (hm_window_room(line, lane, window_ns, pass->cost_ns))
        return true;
    if (hm_window_overshoots(lane) && follows(pass, lane, line->word))
        return true;
    if (line->tail.launches > 0)
        hm_window_mark_apart(line, &line->tail);
    hm_end_launch(line);
    hm_window_wait(lane, window_ns, pass->cost_ns);
    return false;
}

void
hm_gate_enter(struct hm_pass *pass, hm_work work, CUstream stream)
{
    int device = hm_active() ? current_device() : -1;
    struct hm_lane *lane;
    struct hm_line *line;

    pass->line = NULL;
    if (device < 0)
        return;
    if (hm_capture_runs(stream, false)) {
        if (work & HM_COLLECTIVE)
            hm_collective_capture();
        return;
    }
    lane = &hm_lanes[device];
    line = hm_line_own(device);
    if (line == NULL)
        return;
    *pass = (struct hm_pass){.line = line, .work = work};
    hm_cost_of(pass);
    for (;;) {
        bool closed, behind;
        uint32_t word;

        hm_line_begin(line);
        word = hm_word_of(hm_gate_of(lane));
        closed = HM_UNLIKELY((word & HM_GATE_STATES) == HM_GATE_CLOSED);
        behind = closed && follows(pass, lane, word);
        if (closed && !behind) {
            if (is_waited_for(lane->use)) {
                __atomic_store_n(&lane->use->drained, lane->use->entered - 1, __ATOMIC_SEQ_CST);
            } else {
                hm_end_launch(line);
                wait_for_gate(device, line);
                continue;
            }
        } else if (HM_UNLIKELY(word != line->word) && !closed && !enter_slot(line, lane, word)) {
            hm_end_launch(line);
            continue;
        }
        if (HM_UNLIKELY(line->tail.launches > 0 &&
                        (pass->cost_ns >= HM_MARK_NS || !hm_line_is_on(line, &line->tail, stream))))
            put_aside(line);
        if (behind)
            break;
        if ((word & HM_GATE_STATES) == HM_GATE_FREE) {
            CUcontext context = NULL;

            REAL(cuCtxGetCurrent(&context));
            hm_line_note(line, stream, context);
            break;
        }
        if (pass_windowed(pass, lane))
            break;
    }
    if (HM_UNLIKELY(work & HM_COLLECTIVE))
        count_collective(device, lane->use);
    pass->windowed = (line->word & HM_GATE_STATES) != HM_GATE_FREE;
    line->tail.stream = stream;
    if (hm_device_only() == device && hm_tenant.limits->device_count == 1)
        hm_here = (struct hm_here){.free = pass->windowed ? NULL : line,
                                   .windowed = pass->windowed ? line : NULL,
                                   .lane = lane};
}

/* What was launched joins the line's tail, and the tail gets its mark where it is long enough or tells us something. */
static void
account(const struct hm_pass *pass)
{
    struct hm_line *line = pass->line;
    struct hm_lane *lane = &hm_lanes[line->device];
    struct hm_tail *tail = &line->tail;

    __atomic_fetch_add(&lane->ahead_ns, (int64_t)pass->cost_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&tail->launches, tail->launches + 1,
                     __ATOMIC_RELAXED); /* partner: hm_line_tidy */
    tail->kind[(tail->launches - 1) % HM_KINDS] = pass->kind;
    if (tail->launches == 1) {
        __atomic_store_n(&tail->begun_ns, hm_now_ns(), __ATOMIC_RELAXED);
        tail->cost_ns = 0;
        tail->known = tail->tells = true;
        REAL(cuCtxGetCurrent(&tail->context));
    }
    tail->known &= pass->known;
    tail->cost_ns += pass->cost_ns;
    lane->use->launches++;
    if (tail->cost_ns >= HM_MARK_NS || !pass->known || tail->stream == CU_STREAM_PER_THREAD)
        hm_window_mark(line, tail);
}

CUresult
hm_gate_leave(const struct hm_pass *pass, CUresult result)
{
    if (pass->line == NULL)
        return result;
    if (pass->windowed && result == CUDA_SUCCESS)
        account(pass);
    hm_end_launch(pass->line);
    return result;
}

void
hm_gate_bus(uint64_t bytes)
{
    int device = hm_active() ? current_device() : -1;
    struct hm_slot *slot = device >= 0 ? hm_slot() : NULL;

    if (slot != NULL)
        __atomic_fetch_add(&slot->use[device].bus_bytes, bytes, __ATOMIC_RELAXED);
}
