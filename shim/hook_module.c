/* Modules, libraries, and the points where the driver loads lazily what they hold. */
#include "code.h"
#include "collective.h"
#include "image.h"

/* The four ways to load a module. */
#define LOAD(module, variables, call)                                        \
    ({                                                                       \
        uint64_t hm_variables = hm_active() ? (variables) : 0;               \
        struct hm_charge hm_charge;                                          \
        hm_code_load_begin(&hm_charge, hm_variables)                         \
            ? hm_code_load_end(&hm_charge, hm_variables, module, REAL(call)) \
            : CUDA_ERROR_OUT_OF_MEMORY;                                      \
    })

HM_HOOK CUresult
cuModuleLoad(CUmodule *module, const char *fname)
{
    return LOAD(module, hm_image_file_variables(fname), cuModuleLoad(module, fname));
}

HM_HOOK CUresult
cuModuleLoadData(CUmodule *module, const void *image)
{
    return LOAD(module, hm_image_variables(image), cuModuleLoadData(module, image));
}

HM_HOOK CUresult
cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions,
                   CUjit_option *options, void **optionValues)
{
    return LOAD(module, hm_image_variables(image),
                cuModuleLoadDataEx(module, image, numOptions, options, optionValues));
}

HM_HOOK CUresult
cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin)
{
    return LOAD(module, hm_image_variables(fatCubin), cuModuleLoadFatBinary(module, fatCubin));
}

HM_HOOK CUresult
cuModuleUnload(CUmodule hmod)
{
    return hm_code_unload(hmod);
}

HM_HOOK CUresult
cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name)
{
    CUresult result = REAL(cuModuleGetFunction(hfunc, hmod, name));

    if (result == CUDA_SUCCESS)
        hm_collective_named(*hfunc, name);
    if (result != CUDA_SUCCESS || hm_code_function_fits(*hfunc))
        return result;
    *hfunc = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuFuncLoad(CUfunction function)
{
    CUresult result = REAL(cuFuncLoad(function));

    if (result != CUDA_SUCCESS || hm_code_function_fits(function))
        return result;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions,
                  void **jitOptionsValues, unsigned int numJitOptions,
                  CUlibraryOption *libraryOptions, void **libraryOptionValues,
                  unsigned int numLibraryOptions)
{
    uint64_t variables = hm_active() ? hm_image_variables(code) : 0;
    struct hm_charge charge;

    if (!hm_code_library_begin(&charge, variables))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_code_library_end(
        &charge, library, variables,
        REAL(cuLibraryLoadData(library, code, jitOptions, jitOptionsValues, numJitOptions,
                               libraryOptions, libraryOptionValues, numLibraryOptions)));
}

HM_HOOK CUresult
cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions,
                      void **jitOptionsValues, unsigned int numJitOptions,
                      CUlibraryOption *libraryOptions, void **libraryOptionValues,
                      unsigned int numLibraryOptions)
{
    uint64_t variables = hm_active() ? hm_image_file_variables(fileName) : 0;
    struct hm_charge charge;

    if (!hm_code_library_begin(&charge, variables))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return hm_code_library_end(
        &charge, library, variables,
        REAL(cuLibraryLoadFromFile(library, fileName, jitOptions, jitOptionsValues, numJitOptions,
                                   libraryOptions, libraryOptionValues, numLibraryOptions)));
}

HM_HOOK CUresult
cuLibraryUnload(CUlibrary library)
{
    return hm_code_library_unload(library);
}

/* A look-up that may load the library's module. */
#define LOOK_UP(library, call)                            \
    ({                                                    \
        CUresult hm_looked_up = CUDA_ERROR_OUT_OF_MEMORY; \
        if (hm_code_library_fits(library))                \
            hm_looked_up = REAL(call);                    \
        hm_looked_up;                                     \
    })

HM_HOOK CUresult
cuLibraryGetModule(CUmodule *pMod, CUlibrary library)
{
    return LOOK_UP(library, cuLibraryGetModule(pMod, library));
}

HM_HOOK CUresult
cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)
{
    return LOOK_UP(library, cuLibraryGetGlobal(dptr, bytes, library, name));
}

HM_HOOK CUresult
cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)
{
    return LOOK_UP(library, cuLibraryGetManaged(dptr, bytes, library, name));
}

HM_HOOK CUresult
cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name)
{
    CUresult result = LOOK_UP(library, cuLibraryGetKernel(pKernel, library, name));

    if (result == CUDA_SUCCESS)
        hm_collective_named(*pKernel, name);
    if (result != CUDA_SUCCESS || hm_code_kernel_fits(*pKernel))
        return result;
    *pKernel = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel)
{
    CUresult result;

    if (!hm_code_kernel_loads(kernel))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuKernelGetFunction(pFunc, kernel));
    if (result == CUDA_SUCCESS)
        hm_collective_same(*pFunc, kernel);
    if (result != CUDA_SUCCESS || hm_code_function_fits(*pFunc))
        return result;
    *pFunc = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}
