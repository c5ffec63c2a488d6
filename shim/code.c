#include "code.h"

#include "context.h"
#include "image.h"
#include "ledger.h"
#include "local.h"
#include "overhead.h"
#include "physical.h"

#define LARGE_BYTES HM_BLOCK_BYTES /* variables of less are overhead */

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

/* Reserve what the variables of a module take, if they are many; nothing, but to be remembered, if nobody knows. */
bool
hm_code_load_begin(struct hm_charge *charge, uint64_t variables)
{
    *charge = (struct hm_charge){.device = -1};
    if (!hm_context_services_fit())
        return false;
    return hm_quota_reserve(charge, HM_LINEAR, variables >= LARGE_BYTES ? hm_device_current() : -1,
                            variables != HM_IMAGE_UNKNOWN ? hm_whole_blocks(variables) : 0);
}

/* Settle the unloading of what load_begin reserved for. */
static CUresult
unloaded(bool known, const struct hm_object *object, CUresult result)
{
    hm_object_freed(known, object, result);
    if (known && result == CUDA_SUCCESS && object->charge.bytes == 0)
        hm_overhead_refresh(object->charge.device); /* nobody knew, and nobody knows */
    return result;
}

CUresult
hm_code_unload(CUmodule module)
{
    struct hm_object object;
    bool known = hm_active() && hm_object_take(HM_MODULE, (uintptr_t)module, &object);

    return unloaded(known, &object, REAL(cuModuleUnload(module)));
}

CUresult
hm_code_load_end(struct hm_charge *charge, uint64_t variables, CUmodule *module, CUresult result)
{
    int device;

    hm_quota_settle(charge, HM_MODULE, result == CUDA_SUCCESS ? (uintptr_t)*module : 0, true,
                    result);
    device = result == CUDA_SUCCESS ? hm_device_current() : -1;
    if (variables == HM_IMAGE_UNKNOWN ? unknown_fits(device) : still_fits(device))
        return result;
    hm_code_unload(*module);
    hm_overhead_refresh(device);
    *module = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/*
 * The module of a library in a device's context is charged under the library's handle plus the device's index: handles
 * are pointers to something larger than that. A thread that is about to charge one sets the device's bit in the value
 * of the HM_LIBRARY, which otherwise holds whole blocks.
 */
#define CLAIMED_BITS 0xffff

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

bool
hm_code_library_fits(CUlibrary library)
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

bool
hm_code_kernel_loads(CUkernel kernel)
{
    CUlibrary library;

    return __atomic_load_n(&large_libraries, __ATOMIC_RELAXED) == 0 ||
           REAL(cuKernelGetLibrary(&library, kernel)) != CUDA_SUCCESS ||
           hm_code_library_fits(library);
}

static bool
loads_eagerly(void)
{
    CUmoduleLoadingMode mode = CU_MODULE_LAZY_LOADING;

    REAL(cuModuleGetLoadingMode(&mode));
    return mode == CU_MODULE_EAGER_LOADING;
}

/* Loading eagerly takes the memory at once. */
bool
hm_code_library_begin(struct hm_charge *charge, uint64_t variables)
{
    bool eager = variables >= LARGE_BYTES && variables != HM_IMAGE_UNKNOWN && loads_eagerly();

    *charge = (struct hm_charge){.device = -1};
    if (!hm_context_services_fit())
        return false;
    return hm_quota_reserve(charge, HM_LINEAR, eager ? hm_device_current() : -1,
                            eager ? hm_whole_blocks(variables) : 0);
}

CUresult
hm_code_library_unload(CUlibrary library)
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
        unloaded(known[i], &module[i], result);
    if (large && (result == CUDA_SUCCESS || !hm_object_put(&object)))
        __atomic_fetch_sub(&large_libraries, 1, __ATOMIC_RELAXED);
    return result;
}

CUresult
hm_code_library_end(struct hm_charge *charge, CUlibrary *library, uint64_t variables,
                    CUresult result)
{
    struct hm_object object = {.type = HM_LIBRARY, .charge = {.device = -1}};

    if (variables < LARGE_BYTES)
        return result;
    object.key = result == CUDA_SUCCESS ? (uintptr_t)*library : 0;
    object.value = variables == HM_IMAGE_UNKNOWN ? 0 : hm_whole_blocks(variables);
    hm_quota_settle(charge, HM_MODULE, object.key + (unsigned int)charge->device, true, result);
    if (result != CUDA_SUCCESS)
        return result;
    if (hm_object_put(&object))
        __atomic_fetch_add(&large_libraries, 1, __ATOMIC_RELAXED);
    if (!loads_eagerly() || hm_code_library_fits(*library))
        return result;
    hm_code_library_unload(*library);
    *library = NULL;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

bool
hm_code_function_fits(CUfunction function)
{
    int device = hm_device_current(), thread_bytes = 0;

    if (device < 0)
        return true;
    REAL(cuFuncGetAttribute(&thread_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function));
    return hm_local_claim(device, thread_bytes > 0 ? (uint64_t)thread_bytes : 0) &&
           still_fits(device);
}

/* A kernel is launched as it is, so this may be the last look-up before. */
bool
hm_code_kernel_fits(CUkernel kernel)
{
    int device = hm_device_current(), thread_bytes = 0;

    if (device < 0)
        return true;
    REAL(cuKernelGetAttribute(&thread_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, kernel,
                              hm_device_handle(device)));
    return hm_local_claim(device, thread_bytes > 0 ? (uint64_t)thread_bytes : 0) &&
           still_fits(device);
}
