/*
 * Code. What it takes of the card is small but for two things, and these are charged where they can be known: the
 * variables of a module (its image says how many bytes) and the local memory of its kernels. The rest is overhead, and
 * close to the cap it is looked at through NVML after each step that may have loaded something.
 */
#pragma once
#include "quota.h"

/* Reserve what the variables of a module take, if they are many. False: out of memory. variables: of image.h. */
bool hm_code_load_begin(struct hm_charge *charge, uint64_t variables);
/* Settle a load. Close to the cap, or where nobody knew, a module that does not fit is unloaded. Returns result, or
   CUDA_ERROR_OUT_OF_MEMORY. */
CUresult hm_code_load_end(struct hm_charge *charge, uint64_t variables, CUmodule *module,
                          CUresult result);
CUresult hm_code_unload(CUmodule module);

/*
 * Libraries take their memory in each context when something in them is first used there. For one with large variables
 * (or of PTX, where nobody knows) we make that happen at the first look-up, where it can be refused.
 */
bool hm_code_library_begin(struct hm_charge *charge, uint64_t variables);
CUresult hm_code_library_end(struct hm_charge *charge, CUlibrary *library, uint64_t variables,
                             CUresult result);
CUresult hm_code_library_unload(CUlibrary library);

/* A look-up in the library, or of the function of one of its kernels, is about to be made. False: out of memory. */
bool hm_code_library_fits(CUlibrary library);
bool hm_code_kernel_loads(CUkernel kernel);

/* A function or kernel is about to be handed out: its code may just have been loaded, and its local memory comes with a
   launch. False: out of memory. */
bool hm_code_function_fits(CUfunction function);
bool hm_code_kernel_fits(CUkernel kernel);
