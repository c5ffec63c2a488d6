/*
 * A libcuda.so.1 to link against where there is no driver: the names that driver.h lists, and
 * nothing behind them. Built once for each stream mode; weak, since both have most names.
 */
#include "driver.h"

#define HM_STUB(name) \
    __asm__(          \
        ".weak " HM_TEXT(name) "\n.type " HM_TEXT(name) ", @function\n" HM_TEXT(name) ":\nret\n");
HM_ENTRIES(HM_STUB)
