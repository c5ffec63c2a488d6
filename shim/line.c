/* Lanes and lines: who arbitrates for a device, and what each thread has launched on it. */
#include "quick.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#define SPINS 100
#define DROP_TRIES 100000

struct hm_lane hm_lanes[HM_DEVICES];
static const struct hm_gate open_gate = {.word = HM_GATE_FREE};
static struct hm_line *lines; /* atomic */
static bool given_up;         /* atomic */
static __thread struct hm_line *own[HM_DEVICES] __attribute__((tls_model("initial-exec")));
__thread struct hm_here hm_here;
static pthread_key_t leaving;

struct hm_line *
hm_line_first(void)
{
    return __atomic_load_n(&lines, __ATOMIC_ACQUIRE); /* pairs with the release of who adds one */
}

static const struct hm_gate *
right_gate(int device, uint64_t now_ns)
{
    const struct hm_limit *limit = &hm_tenant.limits->device[device];
    uint32_t percent = __atomic_load_n(&limit->time_percent, __ATOMIC_RELAXED);

    if (__atomic_load_n(&given_up, __ATOMIC_RELAXED))
        return &open_gate;
    if (__atomic_load_n(&hm_tenant.limits->lease_ns, __ATOMIC_ACQUIRE) > now_ns)
        return &limit->gate;
    return percent > 0 && percent < 100 ? &hm_tenant.usage->device[device].gate : &open_gate;
}

bool
hm_lane_choose(int device, uint64_t now_ns)
{
    struct hm_lane *lane = &hm_lanes[device];
    const struct hm_gate *right = right_gate(device, now_ns);
    bool same = hm_gate_of(lane) == right;

    if (!same)
        __atomic_store_n(&lane->gate, right, __ATOMIC_RELEASE);
    return !same;
}

void
hm_gate_give_up(void)
{
    __atomic_store_n(&given_up, true, __ATOMIC_RELAXED);
    for (int i = 0; i < HM_DEVICES; i++)
        if (hm_lanes[i].use != NULL)
            hm_lane_choose(i, 0);
}

static void
thread_leaves(void *unused)
{
    (void)unused;
    for (int i = 0; i < HM_DEVICES; i++)
        if (own[i] != NULL)
            __atomic_store_n(&own[i]->left, true, __ATOMIC_RELEASE);
}

static void
make_key(void)
{
    pthread_key_create(&leaving, thread_leaves);
}

/* A line that a thread left behind, with nothing on it that has not ended. */
static struct hm_line *
abandoned(int device)
{
    for (struct hm_line *line = hm_line_first(); line != NULL; line = line->next) {
        bool left = true;

        if (line->device == device && line->tail.launches == 0 &&
            __atomic_load_n(&line->done, __ATOMIC_ACQUIRE) == line->marked &&
            __atomic_compare_exchange_n(&line->left, &left, false, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return line;
    }
    return NULL;
}

/* The first launch of this thread on a device. NULL: no memory, or no slot (which was said). */
static struct hm_line *
make_line(int device)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct hm_lane *lane = &hm_lanes[device];
    struct hm_slot *slot = hm_slot();
    struct hm_line *line;

    if (slot == NULL)
        return NULL;
    pthread_once(&once, make_key);
    if (__atomic_load_n(&lane->use, __ATOMIC_ACQUIRE) != &slot->use[device])
        __atomic_store_n(&lane->use, &slot->use[device], __ATOMIC_RELEASE);
    hm_lane_choose(device, hm_now_ns());
    line = abandoned(device);
    if (line == NULL) {
        line = aligned_alloc(_Alignof(struct hm_line), sizeof(*line));
        if (line == NULL)
            return NULL;
        *line = (struct hm_line){.device = device, .next = hm_line_first()};
        while (!__atomic_compare_exchange_n(&lines, &line->next, line, false, __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE))
            ;
    }
    pthread_setspecific(leaving, line);
    own[device] = line;
    hm_reaper_start();
    return line;
}

struct hm_line *
hm_line_own(int device)
{
    return own[device] != NULL ? own[device] : make_line(device);
}

/* The thread is in a launch from here on. Whoever holds its line is soon done. */
void
hm_line_begin(struct hm_line *line)
{
    __atomic_store_n(&line->in_launch, 1, __ATOMIC_SEQ_CST); /* partner: hm_line_hold */
    for (int i = 0; __atomic_load_n(&line->held, __ATOMIC_SEQ_CST) != 0; i++)
        if (i > SPINS)
            sched_yield();
}

bool
hm_line_hold(struct hm_line *line)
{
    __atomic_store_n(&line->held, 1, __ATOMIC_SEQ_CST); /* partner: begin_launch */
    if (__atomic_load_n(&line->in_launch, __ATOMIC_SEQ_CST) == 0)
        return true;
    __atomic_store_n(&line->held, 0, __ATOMIC_RELEASE);
    return false;
}

void
hm_line_release(struct hm_line *line)
{
    __atomic_store_n(&line->held, 0, __ATOMIC_RELEASE);
}

bool
hm_line_is_on(const struct hm_line *line, const struct hm_tail *tail, CUstream stream)
{
    CUcontext context;

    return tail->stream == stream &&
           (hm_knows_context(&hm_lanes[line->device]) ||
            (REAL(cuCtxGetCurrent(&context)) == CUDA_SUCCESS && context == tail->context));
}

/* A stream that the card may be working on and that has no mark. Where they are too many, it is all of the context. */
void
hm_line_note(struct hm_line *line, CUstream stream, CUcontext context)
{
    struct hm_tail *note = NULL;

    for (uint32_t i = 0; i < line->noted; i++) {
        if (line->note[i].launches == 0)
            note = &line->note[i];
        else if (line->note[i].context == context &&
                 (line->note[i].stream == stream || line->note[i].stream == NULL))
            return;
    }
    if (note == NULL && line->noted < HM_NOTED) {
        note = &line->note[line->noted];
        __atomic_store_n(&line->noted, line->noted + 1, __ATOMIC_RELAXED);
    }
    if (note == NULL) {
        note = &line->note[HM_NOTED - 1];
        stream = NULL;
    }
    *note = (struct hm_tail){.stream = stream, .context = context, .launches = 1};
}

/*
 * A stream of a context goes, or (NULL) the context itself. The reaper is locked out. What a stream leaves behind ends when
 * all that its context has now ends; a context leaves nothing.
 */
static void
forget(struct hm_line *line, CUstream stream, CUcontext context)
{
    for (int i = 0; !hm_line_hold(line) && i < DROP_TRIES; i++) /* a launch takes microseconds */
        sched_yield();
    for (uint32_t i = 0; i <= line->noted; i++) {
        struct hm_tail *tail = i < line->noted ? &line->note[i] : &line->tail;

        if (stream != NULL && tail->stream == stream) {
            tail->stream = NULL;
            tail->tells = false;
        } else if (stream == NULL && tail->context == context && tail->launches > 0) {
            __atomic_fetch_sub(&hm_lanes[line->device].ahead_ns, (int64_t)tail->cost_ns,
                               __ATOMIC_RELAXED);
            tail->launches = 0;
        }
    }
    if (stream == NULL)
        line->tail.stream = NULL; /* the next launch on such a handle is noted anew */
    for (int i = 0; stream == NULL && i < HM_MARKS; i++)
        if (line->mark[i].context == context) /* its events die with it */
            line->mark[i].context = NULL;
    hm_line_release(line);
}

/* A stream may be made again under the same handle, so that what our lines know of it has to go. */
void
hm_gate_stream_goes(CUstream stream)
{
    struct hm_line *mine = NULL;

    if (!hm_active() || hm_line_first() == NULL || stream == NULL)
        return;
    for (int i = 0; i < HM_DEVICES; i++)
        if ((mine = own[i]) != NULL && mine->tail.launches > 0 && mine->tail.stream == stream &&
            !hm_capture_runs(stream, false)) {
            hm_line_begin(mine);
            hm_window_mark_apart(mine, &mine->tail);
            hm_end_launch(mine);
        }
    hm_reaper_lock();
    for (struct hm_line *line = hm_line_first(); line != NULL; line = line->next)
        forget(line, stream, NULL);
    hm_reaper_unlock();
}

void
hm_gate_context_goes(void)
{
    hm_reaper_lock();
}

void
hm_gate_context_gone(CUcontext context, bool gone)
{
    for (struct hm_line *line = gone ? hm_line_first() : NULL; line != NULL; line = line->next)
        forget(line, NULL, context);
    hm_reaper_unlock();
}

/* The parent's threads are not ours, and neither is what they launched. Lines are left where they are: leaked, a few KiB. */
void
hm_gate_after_fork_child(void)
{
    hm_reaper_after_fork_child();
    hm_leader_after_fork_child();
    hm_capture_after_fork_child();
    lines = NULL;
    hm_here = (struct hm_here){0};
    for (int i = 0; i < HM_DEVICES; i++) {
        own[i] = NULL;
        hm_lanes[i] = (struct hm_lane){0};
    }
}
