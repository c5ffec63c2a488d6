/* A table sorted by a 64-bit key, for few writers and for ranges. The caller locks it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hm_physical;

struct hm_entry {
    uint64_t key;
    uint64_t size;
    const void *owner;
    struct hm_physical *physical;
};

/* {0} is empty. count may be read without the lock, as a hint. */
struct hm_sorted {
    struct hm_entry *entry;
    size_t count, room;
};

/* Index of the first entry whose key is not below key. */
size_t hm_sorted_lower(const struct hm_sorted *sorted, uint64_t key);

/* NULL: there is none with just that key. */
struct hm_entry *hm_sorted_find(struct hm_sorted *sorted, uint64_t key);

/* Adds a copy. False: no host memory. */
bool hm_sorted_insert(struct hm_sorted *sorted, const struct hm_entry *entry);

/* Takes the entries from .. to - 1 out. */
void hm_sorted_cut(struct hm_sorted *sorted, size_t from, size_t to);
