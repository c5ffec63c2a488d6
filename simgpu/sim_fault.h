/*
 * Faults on order. HAMIRT_SIM_FAULT is a comma list of
 *   NAME:N=CODE          the Nth call (from 1; * for each) of NAME answers CODE
 *   NAME:delay=MICROS    each call of NAME takes that much longer
 *   NAME:absent          cuGetProcAddress answers NOT_FOUND
 * NAME is the symbol as dlsym knows it, with its _v2 or _ptsz.
 */
#pragma once

#include "sim_common.h"

/* Counts a call of `name`, waits if that was asked for, and returns true with the code to answer. */
bool hm_fault_hit(const char *name, int *code);
bool hm_fault_absent(const char *name);
