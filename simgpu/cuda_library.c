#include "cuda_module.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_handle.h"
#include "cuda_memory.h"
#include "cuda_object.h"

struct hm_kernel {
    CUkernel handle;
    struct hm_library *library;
    struct hm_function said; /* what the PTX says, and attributes set since; loaded nowhere */
    struct hm_kernel *next;
};

/* Loaded into a context when something of it is needed there. */
struct hm_library {
    CUlibrary handle;
    char *image;
    struct hm_kernel *kernels;
    CUmodule modules[HM_CARDS_MAX][4]; /* by card, for a few contexts each */
};

/* The names, without taking anything on a card. */
static CUresult
read_kernels(struct hm_library *library)
{
    struct hm_module *module = hm_allocate(sizeof(*module));
    bool ptx = hm_ptx_read(library->image, module);

    while (module->functions != NULL) {
        struct hm_function *function = module->functions;
        struct hm_kernel *kernel = hm_allocate(sizeof(*kernel));

        kernel->library = library;
        kernel->said = *function;
        kernel->handle = (CUkernel)(uintptr_t)hm_handle_make(HM_KERNEL, kernel, NULL);
        kernel->next = library->kernels;
        library->kernels = kernel;
        module->functions = function->next;
        free(function);
    }
    while (module->globals != NULL) {
        struct hm_global *global = module->globals;

        module->globals = global->next;
        free(global);
    }
    free(module);
    return ptx ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

static CUresult
library_new(char *image, CUlibrary *handle)
{
    struct hm_library *library = hm_allocate(sizeof(*library));
    CUresult result;

    library->image = image;
    result = read_kernels(library);
    if (result != CUDA_SUCCESS) {
        free(image);
        free(library);
        return result;
    }
    library->handle = (CUlibrary)(uintptr_t)hm_handle_make(HM_LIBRARY, library, NULL);
    *handle = library->handle;
    return CUDA_SUCCESS;
}

/* The library's module in that context, loaded when missing. Dead contexts leave stale handles. */
static CUresult
module_in(struct hm_library *library, struct hm_context *ctx, struct hm_module **module)
{
    CUmodule *slot = NULL;
    CUresult result;

    for (size_t i = 0; i < HM_COUNT(library->modules[0]); i++) {
        CUmodule *handle = &library->modules[ctx->card][i];

        *module = HM_HANDLE(HM_MODULE, *handle);
        if (*module != NULL && (*module)->ctx == ctx)
            return CUDA_SUCCESS;
        if (*module == NULL)
            slot = handle;
    }
    if (slot == NULL)
        return CUDA_ERROR_NOT_SUPPORTED;
    result = hm_module_new(ctx, library->image, module);
    if (result == CUDA_SUCCESS)
        *slot = (*module)->handle;
    return result;
}

CUresult
hm_kernel_function(CUkernel handle, struct hm_context *ctx, struct hm_function **function)
{
    const struct hm_kernel *kernel = HM_HANDLE(HM_KERNEL, handle);
    struct hm_module *module;
    CUresult result;

    if (kernel == NULL || ctx == NULL)
        return kernel == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_CONTEXT;
    result = module_in(kernel->library, ctx, &module);
    if (result != CUDA_SUCCESS)
        return result;
    *function = hm_module_function(module, kernel->said.name);
    (*function)->dynamic_shared_max = kernel->said.dynamic_shared_max;
    (*function)->carveout = kernel->said.carveout;
    return CUDA_SUCCESS;
}

struct hm_function *
hm_kernel_said(CUkernel handle)
{
    struct hm_kernel *kernel = HM_HANDLE(HM_KERNEL, handle);

    return kernel != NULL ? &kernel->said : NULL;
}

HM_EXPORT CUresult
cuLibraryLoadData(CUlibrary *handle, const void *image, CUjit_option *jit, void **jit_values,
                  unsigned int jit_count, CUlibraryOption *options, void **values,
                  unsigned int count)
{
    HM_ENTER(HM_INITIALIZED);
    (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;

    if (handle == NULL || image == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return library_new(strdup(image), handle);
}

HM_EXPORT CUresult
cuLibraryLoadFromFile(CUlibrary *handle, const char *path, CUjit_option *jit, void **jit_values,
                      unsigned int jit_count, CUlibraryOption *options, void **values,
                      unsigned int count)
{
    HM_ENTER(HM_INITIALIZED);
    char *image;
    CUresult result = hm_image_read(path, &image);

    (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return result != CUDA_SUCCESS ? result : library_new(image, handle);
}

HM_EXPORT CUresult
cuLibraryUnload(CUlibrary handle)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_library *library = HM_HANDLE(HM_LIBRARY, handle);

    if (library == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    for (size_t i = 0; i < sizeof(library->modules) / sizeof(CUmodule); i++) {
        struct hm_module *module = HM_HANDLE(HM_MODULE, (&library->modules[0][0])[i]);

        if (module != NULL)
            hm_module_delete(module);
    }
    while (library->kernels != NULL) {
        struct hm_kernel *kernel = library->kernels;

        library->kernels = kernel->next;
        hm_handle_drop((uint64_t)(uintptr_t)kernel->handle);
        free(kernel);
    }
    hm_handle_drop((uint64_t)(uintptr_t)library->handle);
    free(library->image);
    free(library);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLibraryGetKernel(CUkernel *kernel_handle, CUlibrary handle, const char *name)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_library *library = HM_HANDLE(HM_LIBRARY, handle);
    const struct hm_kernel *kernel;

    if (library == NULL || kernel_handle == NULL || name == NULL)
        return library == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    for (kernel = library->kernels; kernel != NULL; kernel = kernel->next) {
        if (strcmp(kernel->said.name, name) == 0) {
            *kernel_handle = kernel->handle;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_NOT_FOUND;
}

HM_EXPORT CUresult
cuLibraryGetKernelCount(unsigned int *count, CUlibrary handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_library *library = HM_HANDLE(HM_LIBRARY, handle);

    if (library == NULL || count == NULL)
        return library == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *count = 0;
    for (const struct hm_kernel *kernel = library->kernels; kernel != NULL; kernel = kernel->next)
        ++*count;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int count, CUlibrary handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_library *library = HM_HANDLE(HM_LIBRARY, handle);
    const struct hm_kernel *kernel;

    if (library == NULL || kernels == NULL)
        return library == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    kernel = library->kernels;
    for (unsigned int i = 0; i < count && kernel != NULL; i++, kernel = kernel->next)
        kernels[i] = kernel->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLibraryGetModule(CUmodule *module_handle, CUlibrary handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_library *library = HM_HANDLE(HM_LIBRARY, handle);
    struct hm_module *module;
    CUresult result;

    if (library == NULL || module_handle == NULL)
        return library == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    result = module_in(library, call.ctx, &module);
    if (result == CUDA_SUCCESS)
        *module_handle = module->handle;
    return result;
}

HM_EXPORT CUresult
cuLibraryGetGlobal(CUdeviceptr *address, size_t *bytes, CUlibrary handle, const char *name)
{
    HM_ENTER(HM_CURRENT);
    struct hm_library *library = HM_HANDLE(HM_LIBRARY, handle);
    const struct hm_global *global;
    struct hm_module *module;
    CUresult result;

    if (library == NULL || name == NULL)
        return library == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    result = module_in(library, call.ctx, &module);
    if (result != CUDA_SUCCESS)
        return result;
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
cuKernelGetFunction(CUfunction *function_handle, CUkernel handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_function *function;
    CUresult result;

    if (function_handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    result = hm_kernel_function(handle, call.ctx, &function);
    if (result == CUDA_SUCCESS)
        *function_handle = function->handle;
    return result;
}

HM_EXPORT CUresult
cuKernelGetLibrary(CUlibrary *library, CUkernel handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_kernel *kernel = HM_HANDLE(HM_KERNEL, handle);

    if (kernel == NULL || library == NULL)
        return kernel == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *library = kernel->library->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuKernelGetName(const char **name, CUkernel handle)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_kernel *kernel = HM_HANDLE(HM_KERNEL, handle);

    if (kernel == NULL || name == NULL)
        return kernel == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *name = kernel->said.name;
    return CUDA_SUCCESS;
}
