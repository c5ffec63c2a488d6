/* What PTX says about the variables of a module: the sum of its .global declarations. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* {0} before the first piece of text. */
struct hm_ptx {
    uint64_t bytes;    /* of the declarations so far */
    uint64_t elements; /* of the declaration that is being read */
    uint64_t element_bytes;
    char word[32]; /* that is being read, cut off */
    unsigned int length;
    bool argument; /* of an attribute */
    bool declares; /* behind a .global that begins a declaration */
};

/* Read the next piece. False: the text has ended. */
bool hm_ptx_scan(struct hm_ptx *ptx, const char *text, size_t length);
