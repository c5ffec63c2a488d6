#include "cuda_lookup.h"

#include <ctype.h>
#include <string.h>

/* Where the driver's own words are not just the name in small letters. */
static const struct hm_error_name phrases[] = {
    {CUDA_SUCCESS, "no error"},
    {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
    {CUDA_ERROR_NOT_INITIALIZED, "initialization error"},
    {CUDA_ERROR_DEINITIALIZED, "driver shutting down"},
    {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
    {CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"},
    {CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
    {CUDA_ERROR_NOT_SUPPORTED, "operation not supported"},
    {CUDA_ERROR_SYSTEM_NOT_READY, "system not yet initialized"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_UNKNOWN, "unknown error"},
};

static const char *
name_of(CUresult error)
{
    for (const struct hm_error_name *row = hm_error_names; row->name != NULL; row++) {
        if (row->code == (int)error)
            return row->name;
    }
    return NULL;
}

/* CUDA_ERROR_OUT_OF_MEMORY -> "out of memory". */
static const char *
phrase_from(const char *name)
{
    static __thread char phrase[128];
    size_t length = 0;

    for (name += strlen("CUDA_ERROR_"); *name != '\0' && length + 1 < sizeof(phrase); name++)
        phrase[length++] = *name == '_' ? ' ' : (char)tolower((unsigned char)*name);
    phrase[length] = '\0';
    return phrase;
}

HM_EXPORT CUresult
cuGetErrorName(CUresult error, const char **text)
{
    HM_ENTER(HM_ANYTIME);

    if (text == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *text = name_of(error);
    return *text != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

HM_EXPORT CUresult
cuGetErrorString(CUresult error, const char **text)
{
    HM_ENTER(HM_ANYTIME);

    if (text == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *text = name_of(error);
    if (*text == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < HM_COUNT(phrases); i++) {
        if (phrases[i].code == (int)error) {
            *text = phrases[i].name;
            return CUDA_SUCCESS;
        }
    }
    *text = phrase_from(*text);
    return CUDA_SUCCESS;
}
