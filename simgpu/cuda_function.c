#include "cuda_function.h"

#include "cuda_handle.h"
#include "cuda_module.h"

#define REGISTERS 32

struct hm_function *
hm_function_find(CUfunction handle)
{
    struct hm_function *function = HM_HANDLE(HM_FUNCTION, handle);

    if (function == NULL &&
        hm_kernel_function((CUkernel)handle, hm_context_current(), &function) != CUDA_SUCCESS)
        return NULL;
    return function;
}

static CUresult
get(const struct hm_function *function, CUfunction_attribute name, int *value)
{
    switch (name) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = 1024;
        break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        *value = (int)function->shared_bytes;
        break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        *value = (int)function->local_bytes;
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = REGISTERS;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = 90;
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = function->dynamic_shared_max;
        break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        *value = function->carveout;
        break;
    default:
        *value = 0;
        break;
    }
    return name >= 0 && name < CU_FUNC_ATTRIBUTE_MAX ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult
set(struct hm_function *function, CUfunction_attribute name, int value)
{
    switch (name) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        function->dynamic_shared_max = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        function->carveout = value;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

HM_EXPORT CUresult
cuFuncGetAttribute(int *value, CUfunction_attribute name, CUfunction handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_function *function = hm_function_find(handle);

    if (function == NULL || value == NULL)
        return function == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    return get(function, name, value);
}

HM_EXPORT CUresult
cuFuncSetAttribute(CUfunction handle, CUfunction_attribute name, int value)
{
    HM_ENTER(HM_CURRENT);
    struct hm_function *function = hm_function_find(handle);

    return function == NULL ? CUDA_ERROR_INVALID_HANDLE : set(function, name, value);
}

HM_EXPORT CUresult
cuKernelGetAttribute(int *value, CUfunction_attribute name, CUkernel kernel, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    const struct hm_function *said = hm_kernel_said(kernel);

    if (said == NULL || value == NULL)
        return said == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    return hm_device_valid(device) ? get(said, name, value) : CUDA_ERROR_INVALID_DEVICE;
}

/* The devices of a process are all alike: one setting holds for each. */
HM_EXPORT CUresult
cuKernelSetAttribute(CUfunction_attribute name, int value, CUkernel kernel, CUdevice device)
{
    HM_ENTER(HM_INITIALIZED);
    struct hm_function *said = hm_kernel_said(kernel);

    if (said == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    return hm_device_valid(device) ? set(said, name, value) : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult
parameter_info(const struct hm_function *function, size_t index, size_t *offset, size_t *bytes)
{
    if (function == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (offset == NULL || index >= function->parameter_count)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = function->parameter_offset[index];
    if (bytes != NULL)
        *bytes = function->parameter_bytes[index];
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t *offset, size_t *bytes)
{
    HM_ENTER(HM_INITIALIZED);
    return parameter_info(hm_kernel_said(kernel), index, offset, bytes);
}

HM_EXPORT CUresult
cuFuncGetModule(CUmodule *module, CUfunction handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_function *function = hm_function_find(handle);

    if (function == NULL || module == NULL)
        return function == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *module = function->module->handle;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuFuncGetName(const char **name, CUfunction handle)
{
    HM_ENTER(HM_CURRENT);
    const struct hm_function *function = hm_function_find(handle);

    if (function == NULL || name == NULL)
        return function == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *name = function->name;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *bytes)
{
    HM_ENTER(HM_CURRENT);
    return parameter_info(hm_function_find(function), index, offset, bytes);
}

HM_EXPORT CUresult
cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction handle)
{
    HM_ENTER(HM_CURRENT);

    if (hm_function_find(handle) == NULL || state == NULL)
        return state == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
    *state = CU_FUNCTION_LOADING_STATE_LOADED;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuFuncLoad(CUfunction handle)
{
    HM_ENTER(HM_CURRENT);
    return hm_function_find(handle) == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache config)
{
    HM_ENTER(HM_CURRENT);
    (void)config;
    return hm_function_find(handle) == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}
