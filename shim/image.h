/* What a module's image says about the memory it will take. Images come from anywhere, and their size is unknown. */
#pragma once
#include <stdint.h>

#define HM_IMAGE_UNKNOWN UINT64_MAX /* a fatbin of nothing but compressed PTX */

/* Bytes of the module's variables: of a cubin, of PTX, or the most of any in a fatbin (0 for compressed cubins). */
uint64_t hm_image_variables(const void *image);

/*
 * What device code may call that the driver has to load code and buffers for, once in each context (bits). Seen in the
 * names of a cubin; a compressed cubin can't be looked into, and PyTorch's assert, so that is assumed of it.
 */
enum { HM_SERVICE_ASSERT = 1, HM_SERVICE_PRINTF = 2, HM_SERVICE_MALLOC = 4 };

/* The services of all images that hm_image_variables looked at so far in this process. */
uint32_t hm_image_services(void);

/* The same of a file. 0: it can't be read. */
uint64_t hm_image_file_variables(const char *path);
