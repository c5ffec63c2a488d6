/*
 * The simulator's clock: CLOCK_MONOTONIC, or with HAMIRT_SIM_CLOCK=virtual a number in the state
 * that only waiting moves.
 */
#pragma once

#include "sim_common.h"

int64_t hm_clock_ns(void);
int64_t hm_clock_real_ns(void);
bool hm_clock_virtual(void);

/* Returns at `until_ns` of the clock, or a little earlier: for loops that look again. */
void hm_clock_wait(int64_t until_ns);
/* Lets at least that much real time pass, whatever the clock. */
void hm_clock_pause(int64_t ns);
