/* What a module's image says about the memory it will take. Images come from anywhere, and their size is unknown. */
#pragma once
#include <stdint.h>

#define HM_IMAGE_UNKNOWN UINT64_MAX /* PTX: only the driver's compiler can tell */

/* Bytes of the module's variables: of a cubin, or the most of any cubin in a fatbin (0 for compressed ones). */
uint64_t hm_image_variables(const void *image);

/* The same of a file. 0: it can't be read. */
uint64_t hm_image_file_variables(const char *path);
