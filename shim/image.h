/* What a module's image says about the memory it will take. Images come from anywhere, and their size is unknown. */
#pragma once
#include <stdint.h>

#define HM_IMAGE_UNKNOWN UINT64_MAX /* a fatbin of nothing but compressed PTX */

/* Bytes of the module's variables: of a cubin, of PTX, or the most of any in a fatbin (0 for compressed cubins). */
uint64_t hm_image_variables(const void *image);

/* The same of a file. 0: it can't be read. */
uint64_t hm_image_file_variables(const char *path);
