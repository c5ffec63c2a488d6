/*
 * What gate, window and reaper share: a lane for each device of the tenant, a line for each thread on a device.
 *
 * A line is its thread's own. Others touch it only while the thread is not in a launch and can't get into one: the reaper,
 * holding the line (see hm_line_hold), and whoever ends a stream or a context.
 */
#pragma once
#include "futex.h"
#include "gate.h"

#define HM_MARKS 64 /* of a line, at a time; a power of two */
#define HM_NOTED 8  /* streams that a thread uses while the gate is free */
#define HM_KINDS 16 /* of the last launches before a mark; a power of two */
#define HM_NO_KIND UINT16_MAX

#define HM_IDLE_NS (300 * HM_US)    /* a shorter pause is no pause */
#define HM_MARK_NS (250 * HM_US)    /* predicted work between two marks */
#define HM_UNKNOWN_NS (250 * HM_US) /* what nobody has seen yet is taken to be so long */

/* An event on a stream behind some work: that has ended when the event has. */
struct hm_mark {
    CUevent event;
    CUcontext context;       /* the event's; NULL: there is none */
    CUstream stream;         /* as hm_tail.stream */
    uint64_t begun_ns;       /* when the first of the work was launched */
    uint64_t cost_ns;        /* predicted */
    uint32_t launches;       /* 0: it has ended */
    bool known;              /* cost_ns was learned */
    bool tells;              /* the time to its end says how long the work takes */
    uint16_t kind[HM_KINDS]; /* of launch N at N % HM_KINDS */
};

/* Launches on one stream that are not marked yet. */
struct hm_tail {
    CUstream stream; /* hm_stream_named; NULL: all of the context's */
    CUcontext context;
    uint64_t begun_ns, cost_ns;
    uint32_t launches; /* 0: none */
    bool known;
    bool tells;              /* as in hm_mark */
    uint16_t kind[HM_KINDS]; /* as in hm_mark */
};

struct hm_line {
    uint32_t in_launch; /* 1 from before it looks at the gate to after the real call; the thread */
    uint32_t held;      /* 1: the reaper has the line; the reaper */
    uint32_t word;      /* the gate as it was when it let us pass; the thread */
    uint32_t marked;    /* marks made, ever; the thread or who holds the line */
    uint32_t done;      /* of them before the oldest that has not ended; the reaper */
    uint32_t noted;     /* places of note that were used */
    struct hm_tail tail;
    struct hm_tail note[HM_NOTED]; /* only stream, context, and launches: 1 */
    struct hm_mark mark[HM_MARKS];
    int device;
    bool left; /* its thread has ended */
    struct hm_line *next;
} __attribute__((aligned(64)));

struct hm_lane {
    const struct hm_gate *gate; /* which one holds for us at present; atomic */
    struct hm_use *use;         /* of our slot */
    int64_t ahead_ns;           /* predicted GPU time in flight; atomic */
    uint64_t oldest_since_ns;   /* since when the card works at the oldest mark; the reaper */
    uint64_t oldest_cost_ns;    /* its predicted cost; the reaper */
    uint32_t progress;     /* futex word, raised when work has ended and somebody waits for that */
    uint32_t crowd;        /* threads that wait for progress */
    uint64_t busy_from_ns; /* the first launch after a pause; who made it */
    uint64_t last_done_ns; /* when a mark was last seen to have ended; the reaper */
    uint32_t
        settled; /* the slot that the reaper may be about to call drained: nothing joins it any more */
    uint32_t followed; /* the slot that after_ns is of; atomic */
    int64_t after_ns;  /* how much may still follow on what it left in flight; atomic */
    uint64_t
        sampled_ns; /* when it was last looked whether the card works; 0: not of late; the reaper */
    uint64_t worked_ns; /* how long it did; the reaper */
    bool worked;        /* then; the reaper */
    uint32_t
        sharers; /* processes of the tenant among which the card divided its time of late; the reaper */
} __attribute__((aligned(64)));

extern struct hm_lane hm_lanes[HM_DEVICES];

/* line.c: all lines; they are never freed, only used again. */
struct hm_line *hm_line_first(void);
/* line.c: the calling thread's; NULL: no memory, or no slot (which was said). */
struct hm_line *hm_line_own(int device);
/* line.c: the thread is in a launch from here on. Whoever holds its line is soon done. */
void hm_line_begin(struct hm_line *line);
/* line.c: take the line from its thread for a moment, by one at a time: the reaper's lock is held. False: the thread is in
   a launch. */
bool hm_line_hold(struct hm_line *line);
void hm_line_release(struct hm_line *line);
/* line.c: the tail is on this stream of the current context. */
bool hm_line_is_on(const struct hm_line *line, const struct hm_tail *tail, CUstream stream);
/* line.c: note a stream that the card may be working on and that has no mark. */
void hm_line_note(struct hm_line *line, CUstream stream, CUcontext context);
/* line.c: look anew who arbitrates for a device. True: somebody else than before. */
bool hm_lane_choose(int device, uint64_t now_ns);
/* line.c: from now on everything passes; at the end of the process. */
void hm_gate_give_up(void);

/* mark.c: the reaper takes what has ended off a line, on whatever stream. The oldest that has not is returned, NULL if there
   is none. */
const struct hm_mark *hm_line_collect(struct hm_line *line, uint64_t now_ns);
/* mark.c: the reaper marks what the line's thread may not come back to mark; over: its gate was closed. True: something of it
   is unmarked, or about to be. */
bool hm_line_tidy(struct hm_line *line, bool over, bool free, uint64_t now_ns);
/* mark.c: whether the card has not ended what is not marked yet. `before`: nobody can tell at the moment. */
bool hm_line_works(struct hm_line *line, bool before);
/* mark.c: the reaper goes into a context, NULL: out of all. */
void hm_mark_enter(CUcontext context);

/* cost.c: predicted GPU time of the work of a launch, whether it was seen before, and its kind. */
void hm_cost_of(struct hm_pass *pass);
/* cost.c: the work before a mark took so long. queued: the card had other work of ours until it began this. */
void hm_cost_learn(const struct hm_mark *mark, uint64_t elapsed_ns, bool queued);
/* window.c: whether `cost_ns` more may be in flight, and the line has places for their marks. */
bool hm_window_room(const struct hm_line *line, const struct hm_lane *lane, uint64_t window_ns,
                    uint64_t cost_ns);
/* window.c: how much a process may have in flight at present; always as much as the gate's window. */
uint64_t hm_window_ns(const struct hm_lane *lane);
/* window.c: whether work that is short against what the slot leaves in flight may follow on that. */
bool hm_window_follows(struct hm_lane *lane, uint32_t slot, uint64_t cost_ns);
/* window.c: what is in flight will go on after the end of the slot, which is to come. */
bool hm_window_overshoots(const struct hm_lane *lane);
/* window.c: wait until there may be room. */
void hm_window_wait(struct hm_lane *lane, uint64_t window_ns, uint64_t cost_ns);
/* window.c: put a mark behind the line's tail, or behind a stream. By the line's thread or who holds it; the thread has just
   launched on that stream. */
void hm_window_mark(struct hm_line *line, struct hm_tail *tail);
/* window.c: the same at any time, on a stream that lives. False: not now. */
bool hm_window_mark_apart(struct hm_line *line, struct hm_tail *tail);

/* reaper.c: the thread of this process that sees work end. Started by the first line. */
void hm_reaper_start(void);
/* reaper.c: it sleeps and there is something to do. */
void hm_reaper_wake(void);
void hm_reaper_after_fork_child(void);
/* reaper.c: keep it from the driver's objects for a moment. */
void hm_reaper_lock(void);
void hm_reaper_unlock(void);

/* leader.c: without a supervisor: see that some process of the tenant arbitrates for it, maybe this one. */
void hm_leader_see(uint64_t now_ns);
void hm_leader_after_fork_child(void);
