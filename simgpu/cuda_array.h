/* Arrays and mipmapped arrays. */
#pragma once

#include "cuda_range.h"

struct hm_array {
    CUarray handle;
    struct hm_context *ctx;
    CUDA_ARRAY3D_DESCRIPTOR descriptor;
    size_t pitch;
    uint64_t bytes;
    struct hm_range *range; /* NULL: deferred mapping, or a level of a mipmap */
    uint64_t data;          /* 0: none */
};

struct hm_mipmap {
    CUmipmappedArray handle;
    struct hm_context *ctx;
    CUDA_ARRAY3D_DESCRIPTOR descriptor;
    unsigned int levels;
    uint64_t bytes;
    struct hm_range *range;
    struct hm_array *level[16];
};

/* Whether that box lies in the array; false for a wrong handle. */
bool hm_array_holds(CUarray handle, const size_t from[3], const size_t extent[3]);
/* The first byte of an array's data, its row pitch and the bytes of a layer; NULL when it has none. */
char *hm_array_data(CUarray handle, size_t *pitch, size_t *slice);
