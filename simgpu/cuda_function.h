/* Kernels: what the PTX says about them, and what launching one means. */
#pragma once

#include "cuda_stream.h"

#define HM_NAME_BYTES 256
#define HM_PARAMETERS 64

struct hm_module;

struct hm_function {
    CUfunction handle;
    struct hm_module *module;
    struct hm_function *next;
    char name[HM_NAME_BYTES];
    size_t parameter_count;
    size_t parameter_bytes[HM_PARAMETERS];
    size_t parameter_offset[HM_PARAMETERS];
    size_t local_bytes;
    size_t shared_bytes;
    int dynamic_shared_max;
    int carveout;
};

struct hm_launch {
    struct hm_function *function; /* NULL: the handle was none */
    void **parameters;
    void **extra;
};

/* Of a CUfunction, or of a CUkernel passed as one (its function in the current context). */
struct hm_function *hm_function_find(CUfunction handle);

/* Works out what the launch does and how long it takes. */
CUresult hm_launch_prepare(const struct hm_launch *launch, struct hm_op *op);
/* Grows the context's local memory when the kernel needs more than any before. */
CUresult hm_launch_local_memory(struct hm_context *ctx, const struct hm_function *function);

/* The arguments in the kernelParams form, in one piece; NULL for a kernel without parameters. */
void **hm_arguments_copy(const struct hm_launch *launch);
void hm_arguments_free(void **arguments);
