#include "collective.h"

#include "hooks.h"

#include <string.h>

#define PREFIX "nccl" /* of NVIDIA's library, and of AMD's; in a C++ name it stands further in */
#define MOST 1024

static const void *known[MOST]; /* from the first free one on NULL; atomic */
uint32_t hm_collectives;        /* atomic */
static bool captured;           /* atomic */

static void
add(const void *function)
{
    uint32_t at;

    if (hm_collective_is(function))
        return;
    at = __atomic_fetch_add(&hm_collectives, 1, __ATOMIC_ACQ_REL);
    if (at < MOST)
        __atomic_store_n(&known[at], function, __ATOMIC_RELEASE);
}

void
hm_collective_named(const void *function, const char *name)
{
    if (name != NULL && strstr(name, PREFIX) != NULL)
        add(function);
}

void
hm_collective_same(const void *function, const void *kernel)
{
    if (hm_collective_is(kernel))
        add(function);
}

bool
hm_collective_find(const void *function)
{
    uint32_t most = __atomic_load_n(&hm_collectives, __ATOMIC_ACQUIRE);

    for (uint32_t i = 0; i < most && i < MOST; i++)
        if (__atomic_load_n(&known[i], __ATOMIC_ACQUIRE) == function)
            return true;
    return most > MOST; /* too many to know: take it for one */
}

bool
hm_collective_any(void)
{
    return __atomic_load_n(&hm_collectives, __ATOMIC_RELAXED) > 0;
}

void
hm_collective_capture(void)
{
    __atomic_store_n(&captured, true, __ATOMIC_RELAXED);
}

bool
hm_collective_captured(void)
{
    return __atomic_load_n(&captured, __ATOMIC_RELAXED);
}
