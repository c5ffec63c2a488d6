/*
 * What work takes is learned from marks: the time from its launch, or from the end of what was before it, to its own end.
 */
#include "quick.h"

#define PROBES 8
#define MEAN_OF 16
#define LONGEST_NS (1000 * HM_MS)

struct hm_cost hm_costs[HM_COSTS];

/* Where the cost of some work is, or is to be; HM_NO_KIND: the table is full there. */
static uint16_t
find(hm_work work)
{
    for (uint32_t i = 0; i < PROBES; i++) {
        uint16_t kind = hm_kind(work, i);
        hm_work found = __atomic_load_n(&hm_costs[kind].work, __ATOMIC_RELAXED);

        if (found == 0 && __atomic_compare_exchange_n(&hm_costs[kind].work, &found, work, false,
                                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return kind;
        if (found == work)
            return kind;
    }
    return HM_NO_KIND; /* it stays unknown, and is marked one by one */
}

void
hm_cost_of(struct hm_pass *pass)
{
    uint64_t ns = 0;

    pass->kind = find(pass->work);
    if (pass->kind != HM_NO_KIND)
        ns = __atomic_load_n(&hm_costs[pass->kind].ns, __ATOMIC_RELAXED);
    pass->known = ns > 0;
    pass->cost_ns = ns > 0 ? ns : HM_UNKNOWN_NS;
}

static void
set_cost(struct hm_cost *cost, int64_t ns)
{
    ns = ns > LONGEST_NS ? LONGEST_NS : ns < 1 ? 1 : ns;
    __atomic_store_n(&cost->ns, (uint64_t)ns, __ATOMIC_RELAXED);
}

/*
 * A running mean. One measurement may be too short by as much as the next is too long, since ends are seen late, so that
 * both count alike; but a very long one is somebody else's doing. The first is the first launch's, which loads the code:
 * it counts only until there is another.
 */
static void
learn_one(struct hm_cost *cost, int64_t ns)
{
    int64_t before = (int64_t)cost->ns, share = hm_max(hm_min(cost->seen, MEAN_OF), 1);

    if (cost->seen >= MEAN_OF && ns > 2 * before)
        ns = 2 * before;
    set_cost(cost, before + (ns - before) / share);
    cost->seen++;
}

static bool
seen_before(const struct hm_mark *mark, uint32_t at)
{
    for (uint32_t i = 0; i < at; i++)
        if (mark->kind[i] == mark->kind[at])
            return true;
    return false;
}

/* One step towards what a kind would take if all before the mark were wrong by the same factor. */
static void
scale(struct hm_cost *cost, int64_t elapsed, int64_t predicted)
{
    int64_t before = (int64_t)cost->ns;

    if (before > 0)
        set_cost(cost, before + before * (elapsed - predicted) / predicted / MEAN_OF);
}

/*
 * Of several kinds, each is taken to be as much too long, or too short, as all were together. Those that the program launches
 * more slowly than the card works at them take longer together than they would by themselves: that is no reason to think
 * that any of them does.
 */
void
hm_cost_learn(const struct hm_mark *mark, uint64_t elapsed_ns, bool queued)
{
    uint32_t count = mark->launches < HM_KINDS ? mark->launches : HM_KINDS, kinds = 0;
    int64_t elapsed = (int64_t)elapsed_ns, predicted = (int64_t)mark->cost_ns;
    uint16_t kind[HM_KINDS];

    for (uint32_t i = 0; i < count; i++)
        if (!seen_before(mark, i))
            kind[kinds++] = mark->kind[i];
    if (mark->launches > 1 && elapsed > predicted && !queued)
        return;
    if (kinds == 1 && mark->launches <= HM_KINDS) {
        if (kind[0] != HM_NO_KIND)
            learn_one(&hm_costs[kind[0]], elapsed / mark->launches);
        return;
    }
    if (predicted == 0)
        return;
    for (uint32_t i = 0; i < kinds; i++)
        if (kind[i] != HM_NO_KIND)
            scale(&hm_costs[kind[i]], hm_min(elapsed, 2 * predicted), predicted);
}
