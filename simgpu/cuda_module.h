/* Modules and libraries: PTX text, read as far as the simulator needs it. */
#pragma once

#include "cuda_function.h"

struct hm_global {
    char name[HM_NAME_BYTES];
    uint64_t bytes;
    uint64_t offset; /* in the module's memory */
    struct hm_global *next;
};

struct hm_module {
    CUmodule handle;
    struct hm_context *ctx;
    struct hm_function *functions;
    struct hm_global *globals;
    uint64_t global_bytes;
    struct hm_range *memory; /* of the globals, or NULL */
};

/* Reads functions and globals into the module; false when the text is no PTX. */
bool hm_ptx_read(const char *text, struct hm_module *module);

/* From an image in memory: PTX, ended by a NUL byte. */
CUresult hm_module_new(struct hm_context *ctx, const char *image, struct hm_module **module);
/* From a file; the text is the caller's to free. */
CUresult hm_image_read(const char *path, char **image);

struct hm_function *hm_module_function(const struct hm_module *module, const char *name);
const struct hm_global *hm_module_global(const struct hm_module *module, const char *name);
size_t hm_module_function_count(const struct hm_module *module);

/* A kernel is a name in a library; its function in a context comes with the module loaded there. */
CUresult hm_kernel_function(CUkernel handle, struct hm_context *ctx, struct hm_function **function);
/* What is known of a kernel without loading it anywhere; NULL for a wrong handle. */
struct hm_function *hm_kernel_said(CUkernel handle);
