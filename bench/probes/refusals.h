/*
 * Which refusals were wrong, judged afterwards from a log of all calls of a pressure test.
 *
 * A granted request can be in any correct ledger only from before its call until after its free
 * returned; one that was refused never is. Where the highest sum of these at any moment of the
 * refused call, and what was asked, stay within the limit, the refusal was wrong.
 */
#ifndef HM_BENCH_REFUSALS_H
#define HM_BENCH_REFUSALS_H
#include <stdint.h>
#include <stdlib.h>

#define REFUSALS_KEPT 32

/* One request: a granted one lasts until its free returned, a refused one until the answer. */
struct event {
    uint64_t start_ns, end_ns; /* end_ns 0: not over yet */
    uint32_t blocks;
    uint32_t granted;
};

/* A wrong refusal: what was asked, what the others held at most meanwhile, how long it took. */
struct wrong {
    uint64_t asked_blocks, held_blocks, call_ns;
};

struct refusals {
    uint64_t judged, count;
    uint64_t close; /* within `close_blocks` of being wrong: shows that the judge sees sharply */
    struct wrong kept[REFUSALS_KEPT];
};

struct change {
    uint64_t at_ns;
    int64_t blocks;
};

struct history {
    struct change *changes; /* by time */
    int64_t *tree;          /* segment tree of the sum after each change */
    size_t count;
};

static int
change_by_time(const void *one, const void *other)
{
    const struct change *a = one, *b = other;

    if (a->at_ns != b->at_ns)
        return a->at_ns < b->at_ns ? -1 : 1;
    return a->blocks > b->blocks ? -1 : a->blocks < b->blocks; /* what comes before what goes */
}

static void
history_add(struct history *history, const struct event *event)
{
    if (!event->granted)
        return;
    history->changes[history->count++] = (struct change){event->start_ns, event->blocks};
    history->changes[history->count++] = (struct change){event->end_ns, -(int64_t)event->blocks};
}

static void
history_close(struct history *history)
{
    size_t count = history->count;
    int64_t *tree = history->tree;

    qsort(history->changes, count, sizeof *history->changes, change_by_time);
    for (size_t i = 0; i < count; i++)
        tree[count + i] = history->changes[i].blocks + (i == 0 ? 0 : tree[count + i - 1]);
    for (size_t i = count; i-- > 1;)
        tree[i] = tree[2 * i] > tree[2 * i + 1] ? tree[2 * i] : tree[2 * i + 1];
}

/* Index of the first change after `at_ns`. */
static size_t
history_after(const struct history *history, uint64_t at_ns)
{
    size_t low = 0, high = history->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (history->changes[middle].at_ns <= at_ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Highest sum at any moment from start_ns to end_ns. */
static uint64_t
history_peak(const struct history *history, uint64_t start_ns, uint64_t end_ns)
{
    size_t from = history_after(history, start_ns - 1), to = history_after(history, end_ns);
    int64_t best = 0;

    from = history->count + (from > 0 ? from - 1 : 0);
    to += history->count;
    for (; from < to; from /= 2, to /= 2) {
        if (from % 2 == 1) {
            if (history->tree[from] > best)
                best = history->tree[from];
            from++;
        }
        if (to % 2 == 1) {
            to--;
            if (history->tree[to] > best)
                best = history->tree[to];
        }
    }
    return (uint64_t)best;
}

static void
refusal_judge(struct refusals *found, const struct history *history, const struct event *event,
              uint64_t limit_blocks, uint64_t close_blocks)
{
    uint64_t held;

    if (event->granted || event->end_ns == 0)
        return;
    held = history_peak(history, event->start_ns, event->end_ns);
    found->judged++;
    if (held + event->blocks <= limit_blocks + close_blocks)
        found->close++;
    if (held + event->blocks > limit_blocks)
        return;
    if (found->count < REFUSALS_KEPT)
        found->kept[found->count] =
            (struct wrong){event->blocks, held, event->end_ns - event->start_ns};
    found->count++;
}

#endif
