/* One line on stderr, in one write, prefixed "hamirt: ". Never on stdout: that belongs to the program. */
#pragma once
#include <stdbool.h>

void hm_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same, once for each place in the code and process. */
#define hm_log_once(...)                                              \
    do {                                                              \
        static bool hm_logged;                                        \
        if (!__atomic_exchange_n(&hm_logged, true, __ATOMIC_RELAXED)) \
            hm_log(__VA_ARGS__);                                      \
    } while (0)
