/* Managed memory: written by the host, changed by a kernel, read by the host. */
#include "driver.h"

#include "kernels.h"

int
main(void)
{
    enum { WORDS = 1 << 20 };
    struct hm_kernels kernels;
    CUdevice device;
    CUdeviceptr ptr;

    hm_start(&device);
    hm_kernels_load(&kernels);
    CHECK(cu.cuMemAllocManaged(&ptr, WORDS * 4ull, CU_MEM_ATTACH_GLOBAL));
    for (unsigned i = 0; i < WORDS; i++)
        ((uint32_t *)ptr)[i] = i;
    CHECK(hm_launch_words(kernels.fill, NULL, ptr, 0x3a3au, WORDS / 2));
    CHECK(cu.cuCtxSynchronize());
    printf("RESULT managed hash=%016llx\n", (unsigned long long)hm_hash((void *)ptr, WORDS * 4ull));
    CHECK(cu.cuMemFree(ptr));
    return 0;
}
