/* The helper thread of this process: initializes NVML and measures contexts, then trims pools when others need memory. */
#pragma once
#include <stdbool.h>

/* Start it, once in a process. */
void hm_helper_start(void);

/* A context was made: measure it, here if NVML answers at once, else in the helper. */
void hm_helper_measure(int device);

/* In a fork child: there is no helper, and it has nothing to do. */
void hm_helper_after_fork_child(void);
