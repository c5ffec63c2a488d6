/*
 * What every hook needs: NVIDIA's prototypes, the table of the real functions, and the guard around calls to them.
 *
 * `real` is filled on first use, once for CUDA and once for NVML. An entry that the driver lacks answers
 * CUDA_ERROR_NOT_FOUND or NVML_ERROR_FUNCTION_NOT_FOUND, so no entry is ever NULL after hm_enter_*.
 */
#pragma once
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL /* every version and _ptsz twin under its own name */
#endif
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <cuda.h>
#include <nvml.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HM_HOOK __attribute__((visibility("protected"))) /* `&hook` is ours, whoever else has one */
#define HM_LIKELY(x) __builtin_expect(!!(x), 1)
#define HM_UNLIKELY(x) __builtin_expect(!!(x), 0)

struct hm_real {
#define CUDA_HOOK(sym) __typeof__(&sym) sym;
#define NVML_HOOK(sym) __typeof__(&sym) sym;
#define CUDA_CALL(sym) __typeof__(&sym) sym;
#define NVML_CALL(sym) __typeof__(&sym) sym;
#include "hooks.def"
#undef CUDA_HOOK
#undef NVML_HOOK
#undef CUDA_CALL
#undef NVML_CALL
};

extern struct hm_real real __attribute__((visibility("hidden")));

/* Above 0 while this thread is inside a call of the real library: then every route passes through. */
extern __thread int hm_depth __attribute__((tls_model("initial-exec")));
extern bool hm_cuda_resolved __attribute__((visibility("hidden"))),
    hm_nvml_resolved __attribute__((visibility("hidden")));

/* Fill the entries of one library. Idempotent, thread-safe. False: the library is not there. */
bool hm_resolve_cuda(void);
bool hm_resolve_nvml(void);

/* True if the CUDA driver has this entry: HM_HAS(cuMemCreate). */
bool hm_missing(const void *entry);
#define HM_HAS(sym) (!hm_missing((const void *)real.sym))

static inline void
hm_enter(bool resolved, bool (*resolve)(void))
{
    if (HM_UNLIKELY(!resolved))
        resolve();
    hm_depth++;
}

/* Call the real CUDA or NVML function: result = REAL(cuMemAlloc_v2(&ptr, bytes)). */
#define REAL(call)                                                                       \
    ({                                                                                   \
        hm_enter(__atomic_load_n(&hm_cuda_resolved, __ATOMIC_ACQUIRE), hm_resolve_cuda); \
        __auto_type hm_result = real.call;                                               \
        hm_depth--;                                                                      \
        hm_result;                                                                       \
    })
#define REAL_NVML(call)                                                                  \
    ({                                                                                   \
        hm_enter(__atomic_load_n(&hm_nvml_resolved, __ATOMIC_ACQUIRE), hm_resolve_nvml); \
        __auto_type hm_result = real.call;                                               \
        hm_depth--;                                                                      \
        hm_result;                                                                       \
    })
