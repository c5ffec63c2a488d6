/* hook_capture.c: whether a stream records what it is given into a graph instead of running it. */
#pragma once
#include "hooks.h"

/* False without asking the driver in a process that never began a capture: the question costs 10 ns and more. */
bool hm_capture_runs(CUstream stream, bool per_thread);
