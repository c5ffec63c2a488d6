/*
 * Code. What it takes of the card is small but for two things, and these are charged where they can be known: the
 * variables of a module (its image says how many bytes) and the local memory of its kernels. The rest is overhead, and
 * close to the cap it is looked at through NVML after each step that may have loaded something.
 */
#include "image.h"
#include "ledger.h"
#include "local.h"
#include "overhead.h"
#include "physical.h"

#define LARGE_BYTES HM_BLOCK_BYTES /* variables of less are overhead */

/* Types of remembered objects, besides those of quota.h. */
#define HM_MODULE ((enum hm_type)100)
#define HM_LIBRARY ((enum hm_type)101)

static uint32_t large_libraries; /* of this process; atomic */

/* Close to the cap: whether the process went over it. True as well where nobody counts. */
static bool
still_fits(int device)
{
    uint64_t cap, charged;

    if (HM_LIKELY(device < 0 || hm_ledger_room(device) >= HM_NEAR_BYTES))
        return true;
    hm_overhead_refresh(device);
    cap = hm_cap_bytes(device);
    charged = hm_ledger_charged(device);
    if (charged <= cap)
        return true;
    hm_quota_refused(device, charged - cap);
    return false;
}

/* The same after something whose size nobody could know beforehand. */
static bool
unknown_fits(int device)
{
    if (device >= 0)
        hm_overhead_refresh(device);
    return still_fits(device);
}

/* Reserve what the variables of a module take. */
static bool
load_begin(struct hm_charge *charge, uint64_t variables)
{
    bool large = variables >= LARGE_BYTES && variables != HM_IMAGE_UNKNOWN;

    return hm_quota_reserve(charge, HM_LINEAR, large ? hm_device_current() : -1,
                            large ? hm_whole_blocks(variables) : 0);
}

static CUresult
unload(CUmodule module)
{
    struct hm_object object;
    bool known = hm_active() && hm_object_take(HM_MODULE, (uintptr_t)module, &object);

    return hm_object_freed(known, &object, REAL(cuModuleUnload(module)));
}

static CUresult
load_end(struct hm_charge *charge, uint64_t variables, CUmodule *module, CUresult result)
{
    int device;

    hm_quota_settle(charge, HM_MODULE, result == CUDA_SUCCESS ? (uintptr_t)*module : 0, true,
                    result);
    device = result == CUDA_SUCCESS ? hm_device_current() : -1;
    if (variables == HM_IMAGE_UNKNOWN ? unknown_fits(device) : still_fits(device))
        return result;
    unload(*module);
    *module = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* The four ways to load a module. */
#define LOAD(module, variables, call)                                \
    ({                                                               \
        uint64_t hm_variables = hm_active() ? (variables) : 0;       \
        struct hm_charge hm_charge;                                  \
        load_begin(&hm_charge, hm_variables)                         \
            ? load_end(&hm_charge, hm_variables, module, REAL(call)) \
            : CUDA_ERROR_OUT_OF_MEMORY;                              \
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
    return unload(hmod);
}

/* A function is about to be handed out: its code may just have been loaded, and its local memory comes with a launch. */
static bool
function_fits(CUfunction function)
{
    int device = hm_device_current(), thread_bytes = 0;

    if (device < 0)
        return true;
    REAL(cuFuncGetAttribute(&thread_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function));
    return hm_local_claim(device, thread_bytes > 0 ? (uint64_t)thread_bytes : 0) &&
           still_fits(device);
}

HM_HOOK CUresult
cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name)
{
    CUresult result = REAL(cuModuleGetFunction(hfunc, hmod, name));

    if (result != CUDA_SUCCESS || function_fits(*hfunc))
        return result;
    *hfunc = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuFuncLoad(CUfunction function)
{
    CUresult result = REAL(cuFuncLoad(function));

    if (result != CUDA_SUCCESS || function_fits(function))
        return result;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/*
 * Libraries take their memory in each context when something in them is first used there. For one with large variables
 * (or of PTX, where nobody knows) we make that happen at the first look-up, where it can be refused. The module of a
 * library in a device's context is charged under the library's handle plus the device's index: handles are pointers to
 * something larger than that.
 */
#define CLAIMED_BITS \
    0xffff /* of the value of an HM_LIBRARY: a bit for each device on which a thread is at it */

struct claim {
    uint64_t bit;
    bool won;
};

static void
claim(struct hm_object *library, void *argument)
{
    struct claim *mine = argument;

    mine->won = (library->value & mine->bit) == 0;
    library->value |= mine->bit;
}

static void
disclaim(struct hm_object *library, void *argument)
{
    library->value &= ~((const struct claim *)argument)->bit;
}

/* The driver loads the module now, as it would at the first launch. A capture of the program does not mind. */
static CUresult
materialize(CUlibrary library)
{
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    CUmodule module;
    CUresult result;

    REAL(cuThreadExchangeStreamCaptureMode(&mode));
    result = REAL(cuLibraryGetModule(&module, library));
    REAL(cuThreadExchangeStreamCaptureMode(&mode));
    return result;
}

/* Load and charge the module of a library with variables of so many bytes, 0: unknown. */
static bool
module_fits(CUlibrary library, uint64_t bytes, int device)
{
    struct hm_charge charge;

    if (!hm_quota_reserve(&charge, HM_LINEAR, device, bytes))
        return false;
    hm_quota_settle(&charge, HM_MODULE, (uintptr_t)library + (unsigned int)device, true,
                    materialize(library));
    return bytes == 0 ? unknown_fits(device) : still_fits(device);
}

static bool
library_fits(CUlibrary library)
{
    struct hm_object object;
    struct claim mine;
    bool fits;
    int device;

    if (HM_LIKELY(__atomic_load_n(&large_libraries, __ATOMIC_RELAXED) == 0))
        return true;
    device = hm_device_current();
    if (device < 0 || !hm_object_look(HM_LIBRARY, (uintptr_t)library, &object) ||
        hm_object_look(HM_MODULE, (uintptr_t)library + (unsigned int)device, &object))
        return true;
    mine.bit = 1u << device;
    if (!hm_object_change(HM_LIBRARY, (uintptr_t)library, claim, &mine) || !mine.won)
        return true; /* another thread is at it */
    fits = module_fits(library, object.value & ~(uint64_t)CLAIMED_BITS, device);
    hm_object_change(HM_LIBRARY, (uintptr_t)library, disclaim, &mine);
    return fits;
}

static bool
loads_eagerly(void)
{
    CUmoduleLoadingMode mode = CU_MODULE_LAZY_LOADING;

    REAL(cuModuleGetLoadingMode(&mode));
    return mode == CU_MODULE_EAGER_LOADING;
}

/* Loading eagerly takes the memory at once. */
static bool
library_begin(uint64_t variables)
{
    int device;

    if (variables < LARGE_BYTES || variables == HM_IMAGE_UNKNOWN || !loads_eagerly())
        return true;
    device = hm_device_current();
    if (hm_overhead_load_fits(device, variables))
        return true;
    hm_quota_refused(device, variables);
    return false;
}

static CUresult
unload_library(CUlibrary library)
{
    struct hm_object module[HM_DEVICES], object;
    bool known[HM_DEVICES], large;
    CUresult result;

    if (__atomic_load_n(&large_libraries, __ATOMIC_RELAXED) == 0)
        return REAL(cuLibraryUnload(library));
    for (unsigned int i = 0; i < HM_DEVICES; i++)
        known[i] = hm_object_take(HM_MODULE, (uintptr_t)library + i, &module[i]);
    large = hm_object_take(HM_LIBRARY, (uintptr_t)library, &object);
    result = REAL(cuLibraryUnload(library));
    for (unsigned int i = 0; i < HM_DEVICES; i++)
        hm_object_freed(known[i], &module[i], result);
    if (large && (result == CUDA_SUCCESS || !hm_object_put(&object)))
        __atomic_fetch_sub(&large_libraries, 1, __ATOMIC_RELAXED);
    return result;
}

static CUresult
library_end(CUlibrary *library, uint64_t variables, CUresult result)
{
    struct hm_object object = {.type = HM_LIBRARY, .charge = {.device = -1}};

    if (result != CUDA_SUCCESS || variables < LARGE_BYTES)
        return result;
    object.key = (uintptr_t)*library;
    object.value = variables == HM_IMAGE_UNKNOWN ? 0 : hm_whole_blocks(variables);
    if (hm_object_put(&object))
        __atomic_fetch_add(&large_libraries, 1, __ATOMIC_RELAXED);
    if (!loads_eagerly() || library_fits(*library))
        return result;
    unload_library(*library);
    *library = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions,
                  void **jitOptionsValues, unsigned int numJitOptions,
                  CUlibraryOption *libraryOptions, void **libraryOptionValues,
                  unsigned int numLibraryOptions)
{
    uint64_t variables = hm_active() ? hm_image_variables(code) : 0;

    if (!library_begin(variables))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return library_end(
        library, variables,
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

    if (!library_begin(variables))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return library_end(
        library, variables,
        REAL(cuLibraryLoadFromFile(library, fileName, jitOptions, jitOptionsValues, numJitOptions,
                                   libraryOptions, libraryOptionValues, numLibraryOptions)));
}

HM_HOOK CUresult
cuLibraryUnload(CUlibrary library)
{
    return unload_library(library);
}

/* A look-up that may load the library's module. */
#define LOOK_UP(library, call)                            \
    ({                                                    \
        CUresult hm_looked_up = CUDA_ERROR_OUT_OF_MEMORY; \
        if (library_fits(library))                        \
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

/* Like function_fits. A kernel is launched as it is, so this may be the last look-up before. */
static bool
kernel_fits(CUkernel kernel)
{
    int device = hm_device_current(), thread_bytes = 0;

    if (device < 0)
        return true;
    REAL(cuKernelGetAttribute(&thread_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, kernel,
                              hm_device_handle(device)));
    return hm_local_claim(device, thread_bytes > 0 ? (uint64_t)thread_bytes : 0) &&
           still_fits(device);
}

HM_HOOK CUresult
cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name)
{
    CUresult result = LOOK_UP(library, cuLibraryGetKernel(pKernel, library, name));

    if (result != CUDA_SUCCESS || kernel_fits(*pKernel))
        return result;
    *pKernel = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HM_HOOK CUresult
cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel)
{
    CUlibrary library;
    CUresult result;

    if (__atomic_load_n(&large_libraries, __ATOMIC_RELAXED) > 0 &&
        REAL(cuKernelGetLibrary(&library, kernel)) == CUDA_SUCCESS && !library_fits(library))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = REAL(cuKernelGetFunction(pFunc, kernel));
    if (result != CUDA_SUCCESS || function_fits(*pFunc))
        return result;
    *pFunc = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}
