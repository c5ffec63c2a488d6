#include "cuda_module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_capture.h"
#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_object.h"

#define MODULE_BLOCKS 1
#define ELF_MAGIC "\177ELF"

static void
module_free(struct hm_module *module)
{
    while (module->functions != NULL) {
        struct hm_function *function = module->functions;

        module->functions = function->next;
        hm_handle_drop((uint64_t)(uintptr_t)function->handle);
        free(function);
    }
    while (module->globals != NULL) {
        struct hm_global *global = module->globals;

        module->globals = global->next;
        free(global);
    }
    free(module);
}

void
hm_module_delete(struct hm_module *module)
{
    if (module->memory != NULL)
        hm_memory_delete(module->memory);
    hm_blocks_give(module->ctx->card, MODULE_BLOCKS);
    hm_handle_drop((uint64_t)(uintptr_t)module->handle);
    module_free(module);
}

/* A module's code takes a block, its globals what they ask for. */
static CUresult
occupy(struct hm_module *module)
{
    CUresult result;

    if (!hm_blocks_take(module->ctx->card, MODULE_BLOCKS))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (module->global_bytes == 0)
        return CUDA_SUCCESS;
    result = hm_memory_new(module->ctx, HM_MEMORY_GLOBAL, module->global_bytes, &module->memory);
    if (result != CUDA_SUCCESS)
        hm_blocks_give(module->ctx->card, MODULE_BLOCKS);
    return result;
}

CUresult
hm_module_new(struct hm_context *ctx, const char *image, struct hm_module **made)
{
    struct hm_module *module;
    CUresult result;

    if (image == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (memcmp(image, ELF_MAGIC, strlen(ELF_MAGIC)) == 0)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    module = hm_allocate(sizeof(*module));
    module->ctx = ctx;
    result = hm_ptx_read(image, module) ? occupy(module) : CUDA_ERROR_INVALID_IMAGE;
    if (result != CUDA_SUCCESS) {
        module_free(module);
        return result;
    }
    module->handle = (CUmodule)(uintptr_t)hm_handle_make(HM_MODULE, module, ctx);
    for (struct hm_function *function = module->functions; function != NULL;
         function = function->next)
        function->handle = (CUfunction)(uintptr_t)hm_handle_make(HM_FUNCTION, function, NULL);
    *made = module;
    return CUDA_SUCCESS;
}

CUresult
hm_image_read(const char *path, char **image)
{
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    size_t length = 0;
    ssize_t got;

    if (file == NULL)
        return path == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_FILE_NOT_FOUND;
    *image = NULL;
    got = getdelim(image, &length, '\0', file);
    fclose(file);
    if (got >= (ssize_t)strlen(ELF_MAGIC))
        return CUDA_SUCCESS;
    free(*image);
    return CUDA_ERROR_INVALID_IMAGE;
}

struct hm_function *
hm_module_function(const struct hm_module *module, const char *name)
{
    struct hm_function *function = module->functions;

    while (function != NULL && strcmp(function->name, name) != 0)
        function = function->next;
    return function;
}

const struct hm_global *
hm_module_global(const struct hm_module *module, const char *name)
{
    const struct hm_global *global = module->globals;

    while (global != NULL && strcmp(global->name, name) != 0)
        global = global->next;
    return global;
}

size_t
hm_module_function_count(const struct hm_module *module)
{
    size_t count = 0;

    for (const struct hm_function *function = module->functions; function != NULL;
         function = function->next)
        count++;
    return count;
}

static CUresult
load(struct hm_context *ctx, CUmodule *handle, const char *image)
{
    struct hm_module *module;
    CUresult result = hm_capture_unsafe();

    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = hm_module_new(ctx, image, &module);
    if (result == CUDA_SUCCESS)
        *handle = module->handle;
    return result;
}

HM_EXPORT CUresult
cuModuleLoad(CUmodule *handle, const char *path)
{
    HM_ENTER(HM_CURRENT);
    char *image;
    CUresult result = hm_image_read(path, &image);

    if (result != CUDA_SUCCESS)
        return result;
    result = load(call.ctx, handle, image);
    free(image);
    return result;
}

HM_EXPORT CUresult
cuModuleLoadData(CUmodule *handle, const void *image)
{
    HM_ENTER(HM_CURRENT);
    return load(call.ctx, handle, image);
}

HM_EXPORT CUresult
cuModuleLoadDataEx(CUmodule *handle, const void *image, unsigned int count, CUjit_option *options,
                   void **values)
{
    HM_ENTER(HM_CURRENT);
    (void)count;
    (void)options;
    (void)values;
    return load(call.ctx, handle, image);
}

HM_EXPORT CUresult
cuModuleUnload(CUmodule handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_module *module = HM_HANDLE(HM_MODULE, handle);

    if (module == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_context_drain(module->ctx);
    hm_module_delete(module);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuModuleGetFunction(CUfunction *function_handle, CUmodule handle, const char *name)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_module *module = HM_HANDLE(HM_MODULE, handle);
    const struct hm_function *function;

    if (module == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (function_handle == NULL || name == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    function = hm_module_function(module, name);
    if (function == NULL)
        return CUDA_ERROR_NOT_FOUND;
    *function_handle = function->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuModuleGetFunctionCount(unsigned int *count, CUmodule handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_module *module = HM_HANDLE(HM_MODULE, handle);

    if (module == NULL || count == NULL)
        return module == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *count = (unsigned int)hm_module_function_count(module);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuModuleEnumerateFunctions(CUfunction *functions, unsigned int count, CUmodule handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_module *module = HM_HANDLE(HM_MODULE, handle);
    unsigned int index = 0;

    if (module == NULL || functions == NULL)
        return module == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    for (const struct hm_function *function = module->functions; function != NULL && index < count;
         function = function->next)
        functions[index++] = function->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *bytes, CUmodule handle, const char *name)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_module *module = HM_HANDLE(HM_MODULE, handle);
    const struct hm_global *global;

    if (module == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (name == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    global = hm_module_global(module, name);
    if (global == NULL)
        return CUDA_ERROR_NOT_FOUND;
    if (address != NULL)
        *address = module->memory->address + global->offset;
    if (bytes != NULL)
        *bytes = global->bytes;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuModuleGetLoadingMode(CUmoduleLoadingMode *mode)
{
    HM_ENTER(HM_INITIALIZED);

    if (mode == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = CU_MODULE_LAZY_LOADING;
    return CUDA_SUCCESS;
}
