/* thread.c: threads of our own in somebody else's process. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

/* Start a detached thread that takes none of the program's signals. False: there is none to be had. */
bool hm_thread_start(void *(*run)(void *), size_t stack_bytes);
