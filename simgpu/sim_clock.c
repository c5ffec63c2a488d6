#include "sim_clock.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim_state.h"

/* A sleep ends about 60 us late: the last bit is spent asking the clock, as the driver does. */
#define SLEEP_SLACK_NS 80000

int64_t
hm_clock_real_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

bool
hm_clock_virtual(void)
{
    static int mode = -1; /* computed alike by every thread */

    if (mode < 0) {
        const char *text = getenv("HAMIRT_SIM_CLOCK");

        mode = text != NULL && strcmp(text, "virtual") == 0;
    }
    return mode != 0;
}

int64_t
hm_clock_ns(void)
{
    return hm_clock_virtual() ? hm_state()->virtual_ns : hm_clock_real_ns();
}

void
hm_clock_pause(int64_t ns)
{
    struct timespec pause = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

void
hm_clock_wait(int64_t until_ns)
{
    int64_t left;

    if (hm_clock_virtual()) {
        if (hm_state()->virtual_ns < until_ns)
            hm_state()->virtual_ns = until_ns;
        return;
    }
    left = until_ns - hm_clock_real_ns();
    if (left > SLEEP_SLACK_NS) {
        hm_clock_pause(left - SLEEP_SLACK_NS);
        return;
    }
    while (hm_clock_real_ns() < until_ns)
        ;
}
