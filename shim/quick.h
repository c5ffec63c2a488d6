/*
 * The short way through the gate, inline in every hook that launches, for a thread that goes on as it did: on its only
 * device, on the same stream, in the same slot. bench/instructions.py counts what it takes.
 *
 *     return GATED(hm_work_kernel(f, x, y, z), hStream, false, cuLaunchKernel(f, x, y, z, ...));
 */
#pragma once
#include "collective.h"
#include "meter.h"

#define HM_MARKS_AT_ONCE 2 /* a launch makes at most so many */
#define HM_COSTS 8192      /* kinds of work that are known at a time; a power of two */
#define HM_COSTS_SHIFT 51  /* of hm_mix: what is above is below HM_COSTS */

struct hm_cost {
    hm_work work;  /* atomic; 0: unused */
    uint64_t ns;   /* atomic */
    uint32_t seen; /* times it was measured; the reaper */
} __attribute__((aligned(32)));
extern struct hm_cost hm_costs[HM_COSTS] __attribute__((visibility("hidden")));

/* Where a work's cost is, or the next free place behind it. */
static inline uint16_t
hm_kind(hm_work work, uint32_t next)
{
    return (uint16_t)(((work >> HM_COSTS_SHIFT) + next) % HM_COSTS);
}

/* Where the calling thread launches, if there is no question: on the only device. NULL: the long way finds out. */
struct hm_here {
    struct hm_line *free;     /* the gate let its last launch pass unmetered */
    struct hm_line *windowed; /* or metered */
    struct hm_lane *lane;
};
extern __thread struct hm_here hm_here __attribute__((tls_model("initial-exec")));

/* Spreads the lower 62 bits of a value over the upper ones; different ones stay different, and the lowest bits are 01. */
static inline hm_work
hm_mix(uint64_t value)
{
    return value * (0x9e3779b97f4a7c15 << 2) + 1;
}

/* A size to within an eighth: the exponent and three bits of it as a float. */
static inline uint64_t
hm_rough(uint64_t size)
{
    union {
        float number;
        uint32_t bits;
    } rough = {.number = (float)(int64_t)size};

    return rough.bits >> 20;
}

/* A kernel on so many blocks. HM_COLLECTIVE is set for those that collective.h knows. */
static inline hm_work
hm_work_kernel(const void *function, unsigned int x, unsigned int y, unsigned int z)
{
    hm_work work = hm_mix((uint64_t)function ^ hm_rough((uint64_t)x * y * z) << 48);

    return hm_collective_is(function) ? work | HM_COLLECTIVE : work;
}

/* A memset or a copy within the card. */
static inline hm_work
hm_work_bytes(uint64_t bytes)
{
    return hm_mix(hm_rough(bytes) << 8 | 0xc0);
}

/* A graph. */
static inline hm_work
hm_work_graph(CUgraphExec exec)
{
    hm_work work = hm_mix((uint64_t)exec ^ UINT64_C(0x6770) << 48);

    return hm_collective_captured() ? work | HM_COLLECTIVE : work;
}

static inline const struct hm_gate *
hm_gate_of(const struct hm_lane *lane)
{
    return __atomic_load_n(&lane->gate, __ATOMIC_ACQUIRE);
}

/* The gate's word. Sequentially consistent with our in_launch or entered: who closes the gate sees us, or we see it closed. */
static inline uint32_t
hm_word_of(const struct hm_gate *gate)
{
    return __atomic_load_n(&gate->word, __ATOMIC_SEQ_CST);
}

static inline void
hm_end_launch(struct hm_line *line)
{
    __atomic_store_n(&line->in_launch, 0, __ATOMIC_RELEASE); /* partner: hm_line_hold */
}

/* A stream's handle says which context it is of, but for the default ones: of several contexts' they are the same. */
static inline bool
hm_knows_context(const struct hm_lane *lane)
{
    return __atomic_load_n(&lane->use->contexts, __ATOMIC_RELAXED) <= 1;
}

static inline bool
hm_line_has_marks(const struct hm_line *line)
{
    return line->marked - __atomic_load_n(&line->done, __ATOMIC_RELAXED) <=
           HM_MARKS - HM_MARKS_AT_ONCE;
}

/* Begin a launch in the slot of the last. False: not begun. */
static inline __attribute__((always_inline)) bool
hm_quick_begin(struct hm_line *line, const struct hm_lane *lane, CUstream stream, bool per_thread)
{
    if (line == NULL || (hm_depth | hm_capture_count()) != 0) /* neither is below 0 */
        return false;
    __atomic_store_n(&line->in_launch, 1, __ATOMIC_SEQ_CST); /* partner: hm_line_hold */
    if (HM_LIKELY(hm_word_of(hm_gate_of(lane)) == line->word &&
                  line->tail.stream == hm_stream_named(stream, per_thread) &&
                  hm_knows_context(lane) && __atomic_load_n(&line->held, __ATOMIC_SEQ_CST) == 0))
        return true;
    hm_end_launch(line);
    return false;
}

/* While the gate is free: nothing but loads and stores of our own line, and the driver is entered. NULL: the long way. */
static inline __attribute__((always_inline)) struct hm_line *
hm_quick_free(CUstream stream, bool per_thread)
{
    struct hm_line *line = hm_here.free;

    if (!hm_quick_begin(line, hm_here.lane, stream, per_thread))
        return NULL;
    if (HM_LIKELY(line->noted > 0)) {
        hm_depth++;
        return line;
    }
    hm_end_launch(line);
    return NULL;
}

static inline CUresult
hm_quick_leave(struct hm_line *line, CUresult result)
{
    hm_depth--;
    hm_end_launch(line);
    return result;
}

/*
 * While it is windowed: for work of known cost that clearly has room, joins a tail and does not make that long enough for
 * a mark. So there is work in flight, and the arbiter knows that we are busy. Returns the cost, 0: the long way.
 */
static inline __attribute__((always_inline)) uint64_t
hm_quick_windowed(struct hm_line *line, const struct hm_lane *lane, hm_work work, CUstream stream,
                  bool per_thread)
{
    const struct hm_cost *cost = &hm_costs[hm_kind(work, 0)];
    uint64_t ns;

    if ((work & HM_COLLECTIVE) || !hm_quick_begin(line, lane, stream, per_thread))
        return 0;
    ns = __atomic_load_n(&cost->ns, __ATOMIC_RELAXED);
    if (HM_LIKELY(__atomic_load_n(&cost->work, __ATOMIC_RELAXED) == work && ns > 0 &&
                  line->tail.launches > 0 && line->tail.cost_ns + ns < HM_MARK_NS &&
                  __atomic_load_n(&lane->ahead_ns, __ATOMIC_RELAXED) + (int64_t)ns <=
                      (int64_t)__atomic_load_n(&hm_gate_of(lane)->window_ns, __ATOMIC_RELAXED)))
        return ns;
    hm_end_launch(line);
    return 0;
}

/* The real call took it: it joins the tail. */
static inline __attribute__((always_inline)) CUresult
hm_quick_joins(struct hm_line *line, struct hm_lane *lane, hm_work work, uint64_t cost_ns,
               CUresult result)
{
    if (HM_LIKELY(result == CUDA_SUCCESS)) {
        __atomic_fetch_add(&lane->ahead_ns, (int64_t)cost_ns, __ATOMIC_RELAXED);
        line->tail.kind[line->tail.launches % HM_KINDS] = hm_kind(work, 0);
        __atomic_store_n(&line->tail.launches, line->tail.launches + 1, __ATOMIC_RELAXED);
        line->tail.cost_ns += cost_ns;
        lane->use->launches++;
    }
    hm_end_launch(line);
    return result;
}

/* REAL, where a line says that the driver was found. */
#define HM_CALL(call)          \
    ({                         \
        CUresult hm_result;    \
        hm_depth++;            \
        hm_result = real.call; \
        hm_depth--;            \
        hm_result;             \
    })

/* While the gate is not free. */
#define GATED_UNLESS_FREE(work, stream, per_thread, call)                                  \
    ({                                                                                     \
        struct hm_line *hm_line = hm_here.windowed;                                        \
        struct hm_lane *hm_lane = hm_here.lane;                                            \
        hm_work hm_kind = work;                                                            \
        uint64_t hm_ns = hm_quick_windowed(hm_line, hm_lane, hm_kind, stream, per_thread); \
        struct hm_pass hm_pass;                                                            \
        HM_LIKELY(hm_ns > 0)                                                               \
        ? hm_quick_joins(hm_line, hm_lane, hm_kind, hm_ns, HM_CALL(call))                  \
        : (hm_gate_enter(&hm_pass, hm_kind, hm_stream_named(stream, per_thread)),          \
           hm_gate_leave(&hm_pass, REAL(call)));                                           \
    })

/*
 * Hooks say this where the gate may be free: the driver's function then, or else `gated`, one of ours with the same
 * arguments. There is one call for both, or the compiler would keep all arguments for a second.
 */
#define HM_FREE_OR(gated, symbol, stream, per_thread, ...)                                  \
    ({                                                                                      \
        struct hm_line *hm_line = hm_quick_free(stream, per_thread);                        \
        __typeof__(real.symbol) hm_call = HM_LIKELY(hm_line != NULL) ? real.symbol : gated; \
        __asm__("" : "+r"(hm_call), "+r"(hm_line));                                         \
        CUresult hm_launched = hm_call(__VA_ARGS__);                                        \
        HM_LIKELY(hm_line != NULL) ? hm_quick_leave(hm_line, hm_launched) : hm_launched;    \
    })

#define GATED(work, stream, per_thread, call)                                           \
    ({                                                                                  \
        struct hm_line *hm_free = hm_quick_free(stream, per_thread);                    \
        HM_LIKELY(hm_free != NULL) ? hm_quick_leave(hm_free, real.call)                 \
                                   : GATED_UNLESS_FREE(work, stream, per_thread, call); \
    })
