/* The names of a library's error codes: generated from its header. */
#pragma once

#include "sim_common.h"

struct hm_error_name {
    int code;
    const char *name;
};

/* Ends with a NULL name. */
extern const struct hm_error_name hm_error_names[];
