/* Kernels. */
#include "quick.h"

/* Blocks of a cooperative kernel all run at once; on several devices they may wait for each other's. */
static hm_work
cooperative(hm_work work)
{
    return hm_active() && hm_tenant.limits->device_count > 1 ? work | HM_COLLECTIVE : work;
}

static __attribute__((noinline)) CUresult
gated_kernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
             unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
             unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    return GATED_UNLESS_FREE(hm_work_kernel(f, gridDimX, gridDimY, gridDimZ), hStream, false,
                             cuLaunchKernel(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY,
                                            blockDimZ, sharedMemBytes, hStream, kernelParams,
                                            extra));
}

HM_HOOK CUresult
cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
               unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
               unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    return HM_FREE_OR(gated_kernel, cuLaunchKernel, hStream, false, f, gridDimX, gridDimY, gridDimZ,
                      blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream, kernelParams,
                      extra);
}

static __attribute__((noinline)) CUresult
gated_kernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                  unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                  unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    return GATED_UNLESS_FREE(hm_work_kernel(f, gridDimX, gridDimY, gridDimZ), hStream, true,
                             cuLaunchKernel_ptsz(f, gridDimX, gridDimY, gridDimZ, blockDimX,
                                                 blockDimY, blockDimZ, sharedMemBytes, hStream,
                                                 kernelParams, extra));
}

HM_HOOK CUresult
cuLaunchKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                    unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                    unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                    void **kernelParams, void **extra)
{
    return HM_FREE_OR(gated_kernel_ptsz, cuLaunchKernel_ptsz, hStream, true, f, gridDimX, gridDimY,
                      gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream,
                      kernelParams, extra);
}

static hm_work
configured(CUfunction f, const CUlaunchConfig *config)
{
    hm_work work = hm_work_kernel(f, config->gridDimX, config->gridDimY, config->gridDimZ);

    for (unsigned int i = 0; config->attrs != NULL && i < config->numAttrs; i++)
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE &&
            config->attrs[i].value.cooperative)
            return cooperative(work);
    return work;
}

HM_HOOK CUresult
cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra)
{
    if (config == NULL)
        return REAL(cuLaunchKernelEx(config, f, kernelParams, extra));
    return GATED(configured(f, config), config->hStream, false,
                 cuLaunchKernelEx(config, f, kernelParams, extra));
}

HM_HOOK CUresult
cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra)
{
    if (config == NULL)
        return REAL(cuLaunchKernelEx_ptsz(config, f, kernelParams, extra));
    return GATED(configured(f, config), config->hStream, true,
                 cuLaunchKernelEx_ptsz(config, f, kernelParams, extra));
}

HM_HOOK CUresult
cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                          unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                          unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                          void **kernelParams)
{
    return GATED(cooperative(hm_work_kernel(f, gridDimX, gridDimY, gridDimZ)), hStream, false,
                 cuLaunchCooperativeKernel(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY,
                                           blockDimZ, sharedMemBytes, hStream, kernelParams));
}

HM_HOOK CUresult
cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                               unsigned int gridDimZ, unsigned int blockDimX,
                               unsigned int blockDimY, unsigned int blockDimZ,
                               unsigned int sharedMemBytes, CUstream hStream, void **kernelParams)
{
    return GATED(cooperative(hm_work_kernel(f, gridDimX, gridDimY, gridDimZ)), hStream, true,
                 cuLaunchCooperativeKernel_ptsz(f, gridDimX, gridDimY, gridDimZ, blockDimX,
                                                blockDimY, blockDimZ, sharedMemBytes, hStream,
                                                kernelParams));
}

/* A launch waits at one gate only, or it could keep a card and wait for another: the first device's stands for all. */
HM_HOOK CUresult
cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList, unsigned int numDevices,
                                     unsigned int flags)
{
    const CUDA_LAUNCH_PARAMS *first = launchParamsList;

    if (first == NULL || numDevices == 0)
        return REAL(cuLaunchCooperativeKernelMultiDevice(launchParamsList, numDevices, flags));
    return GATED(cooperative(hm_work_kernel(first->function, first->gridDimX, first->gridDimY,
                                            first->gridDimZ)),
                 first->hStream, false,
                 cuLaunchCooperativeKernelMultiDevice(launchParamsList, numDevices, flags));
}

HM_HOOK CUresult
cuLaunch(CUfunction f)
{
    return GATED(hm_work_kernel(f, 1, 1, 1), NULL, false, cuLaunch(f));
}

HM_HOOK CUresult
cuLaunchGrid(CUfunction f, int grid_width, int grid_height)
{
    return GATED(hm_work_kernel(f, grid_width, grid_height, 1), NULL, false,
                 cuLaunchGrid(f, grid_width, grid_height));
}

HM_HOOK CUresult
cuLaunchGridAsync(CUfunction f, int grid_width, int grid_height, CUstream hStream)
{
    return GATED(hm_work_kernel(f, grid_width, grid_height, 1), hStream, false,
                 cuLaunchGridAsync(f, grid_width, grid_height, hStream));
}
