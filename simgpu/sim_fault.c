#include "sim_fault.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_clock.h"

enum fault_kind { FAULT_CODE, FAULT_DELAY, FAULT_ABSENT };

struct fault {
    char name[64];
    enum fault_kind kind;
    long nth; /* 0: every call */
    long value;
    _Atomic long calls;
};

static struct fault faults[32];
static size_t fault_count;
static pthread_once_t parsed = PTHREAD_ONCE_INIT;

static bool
parse_one(const char *text, struct fault *fault)
{
    char action[32] = "";

    if (sscanf(text, "%63[^:]:%31s", fault->name, action) != 2)
        return false;
    if (strcmp(action, "absent") == 0) {
        fault->kind = FAULT_ABSENT;
        return true;
    }
    fault->kind = FAULT_DELAY;
    if (sscanf(action, "delay=%ld", &fault->value) == 1)
        return true;
    fault->kind = FAULT_CODE;
    return sscanf(action, "*=%ld", &fault->value) == 1 ||
           sscanf(action, "%ld=%ld", &fault->nth, &fault->value) == 2;
}

static void
parse(void)
{
    const char *list = getenv("HAMIRT_SIM_FAULT");
    char *copy = strdup(list != NULL ? list : "");
    char *rest = NULL;

    for (char *item = strtok_r(copy, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest)) {
        if (fault_count < HM_COUNT(faults) && parse_one(item, &faults[fault_count]))
            fault_count++;
        else
            fprintf(stderr, "simgpu: HAMIRT_SIM_FAULT: can't use '%s'\n", item);
    }
    free(copy);
}

bool
hm_fault_hit(const char *name, int *code)
{
    bool hit = false;

    pthread_once(&parsed, parse);
    for (size_t i = 0; i < fault_count; i++) {
        struct fault *fault = &faults[i];

        if (fault->kind == FAULT_ABSENT || strcmp(fault->name, name) != 0)
            continue;
        if (fault->kind == FAULT_DELAY) {
            hm_clock_pause(fault->value * 1000);
        } else if (atomic_fetch_add(&fault->calls, 1) + 1 == fault->nth || fault->nth == 0) {
            *code = (int)fault->value;
            hit = true;
        }
    }
    return hit;
}

bool
hm_fault_absent(const char *name)
{
    pthread_once(&parsed, parse);
    for (size_t i = 0; i < fault_count; i++) {
        if (faults[i].kind == FAULT_ABSENT && strcmp(faults[i].name, name) == 0)
            return true;
    }
    return false;
}
