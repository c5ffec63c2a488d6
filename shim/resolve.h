/* Between dlsym.S, elf.c and resolve.c. */
#pragma once
#include "hooks.h"

/* done 0: not ours, go on in the real dlsym by a tail jump; done 1: result is the answer. */
struct hm_answer {
    void *result;
    uintptr_t done;
};

/* caller: an address in whoever asks. dlsym.S passes three arguments on, whether there are two or three. */
struct hm_answer hm_dlsym_answer(void *handle, const char *name, const char *unused,
                                 const void *caller);
struct hm_answer hm_dlvsym_answer(void *handle, const char *name, const char *version,
                                  const void *caller);

extern void *(*hm_libc_dlsym)(void *, const char *);
extern void *(*hm_libc_dlvsym)(void *, const char *, const char *);

/* elf.c: a function that libc or libdl defines, found in its symbol table without asking dlsym. NULL: none does. */
void *hm_elf_find(const char *name);
