/* What every NVML entry point starts with. */
#pragma once

#include "sim_common.h"

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include "sim_card.h"
#include "sim_error.h"
#include "sim_state.h"

#define HM_NVML_REAP_NS 1000000 /* a sample of all cards asks many times */

enum hm_need { HM_ANYTIME, HM_INITIALIZED };

/* First line of an entry point: a fault on order, then whether NVML is initialized. */
#define HM_ENTER(need)                                        \
    do {                                                      \
        nvmlReturn_t entered = hm_call_enter(__func__, need); \
        if (entered != NVML_SUCCESS)                          \
            return entered;                                   \
    } while (0)

/* The same for a function about a device; declares `card`. */
#define HM_ENTER_DEVICE(device)    \
    struct hm_card *card;          \
    HM_ENTER(HM_INITIALIZED);      \
    card = hm_device_card(device); \
    if (card == NULL)              \
    return NVML_ERROR_INVALID_ARGUMENT

nvmlReturn_t hm_call_enter(const char *name, enum hm_need need);
/* For generated forwarders: the name under which the next call looks up its fault. */
void hm_twin_begin(const char *name);

/* A handle is a number, 1 for the first card; NULL when it is none. */
struct hm_card *hm_device_card(nvmlDevice_t device);
nvmlDevice_t hm_device_handle(uint32_t index);
uint32_t hm_device_index(const struct hm_card *card);
/* Copies a text out; INSUFFICIENT_SIZE when it does not fit. */
nvmlReturn_t hm_text_out(const char *text, char *out, unsigned int size);
