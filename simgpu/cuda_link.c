#include "cuda_module.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_handle.h"

/* The linker: pieces of PTX one behind the other are PTX again. */
struct hm_link {
    CUlinkState handle;
    char *text;
    size_t length;
};

HM_EXPORT CUresult
cuLinkCreate_v2(unsigned int count, CUjit_option *options, void **values, CUlinkState *handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_link *link;

    (void)count, (void)options, (void)values;
    if (handle == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    link = hm_allocate(sizeof(*link));
    link->text = hm_allocate(1);
    link->handle = (CUlinkState)(uintptr_t)hm_handle_make(HM_LINK, link, NULL);
    *handle = link->handle;
    return CUDA_SUCCESS;
}

static void
append(struct hm_link *link, const char *text, size_t length)
{
    char *longer = hm_allocate(link->length + length + 2);

    memcpy(longer, link->text, link->length);
    memcpy(longer + link->length, text, length);
    link->length += length;
    longer[link->length++] = '\n';
    free(link->text);
    link->text = longer;
}

HM_EXPORT CUresult
cuLinkAddData_v2(CUlinkState handle, CUjitInputType type, void *data, size_t bytes,
                 const char *name, unsigned int count, CUjit_option *options, void **values)
{
    HM_ENTER(HM_CURRENT);
    struct hm_link *link = HM_HANDLE(HM_LINK, handle);

    (void)name, (void)count, (void)options, (void)values;
    if (link == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (type != CU_JIT_INPUT_PTX)
        return CUDA_ERROR_NOT_SUPPORTED;
    append(link, data, strnlen(data, bytes));
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLinkAddFile_v2(CUlinkState handle, CUjitInputType type, const char *path, unsigned int count,
                 CUjit_option *options, void **values)
{
    HM_ENTER(HM_CURRENT);
    struct hm_link *link = HM_HANDLE(HM_LINK, handle);
    CUresult result;
    char *image;

    (void)count, (void)options, (void)values;
    if (link == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (type != CU_JIT_INPUT_PTX)
        return CUDA_ERROR_NOT_SUPPORTED;
    result = hm_image_read(path, &image);
    if (result != CUDA_SUCCESS)
        return result;
    append(link, image, strlen(image));
    free(image);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLinkComplete(CUlinkState handle, void **image, size_t *bytes)
{
    HM_ENTER(HM_CURRENT);
    struct hm_link *link = HM_HANDLE(HM_LINK, handle);

    if (link == NULL || image == NULL)
        return link == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *image = link->text;
    if (bytes != NULL)
        *bytes = link->length + 1;
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLinkDestroy(CUlinkState handle)
{
    HM_ENTER(HM_CURRENT);
    struct hm_link *link = HM_HANDLE(HM_LINK, handle);

    if (link == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    hm_handle_drop((uint64_t)(uintptr_t)handle);
    free(link->text);
    free(link);
    return CUDA_SUCCESS;
}
