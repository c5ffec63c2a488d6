#include "nvml_call.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DRIVER_VERSION "580.159.04"
#define NVML_VERSION "13.580.159.04"
#define CUDA_VERSION 13000

HM_EXPORT nvmlReturn_t
nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    HM_ENTER(HM_INITIALIZED);
    return hm_text_out(DRIVER_VERSION, version, length);
}

HM_EXPORT nvmlReturn_t
nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    HM_ENTER(HM_INITIALIZED);
    return hm_text_out(NVML_VERSION, version, length);
}

HM_EXPORT nvmlReturn_t
nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    HM_ENTER(HM_ANYTIME);
    if (version == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = CUDA_VERSION;
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    char path[64];
    char command[256];
    ssize_t got = -1;
    int fd;

    HM_ENTER(HM_INITIALIZED);
    if (name == NULL || length == 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(path, sizeof(path), "/proc/%u/cmdline", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        got = read(fd, command, sizeof(command) - 1);
        close(fd);
    }
    if (got <= 0)
        return NVML_ERROR_NOT_FOUND;
    command[got] = '\0';
    snprintf(name, length, "%s", command);
    return NVML_SUCCESS;
}

HM_EXPORT nvmlReturn_t
nvmlUnitGetCount(unsigned int *count)
{
    HM_ENTER(HM_INITIALIZED);
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

static const char *
name_of(nvmlReturn_t error)
{
    for (const struct hm_error_name *row = hm_error_names; row->name != NULL; row++) {
        if (row->code == (int)error)
            return row->name;
    }
    return NULL;
}

/* NVML_ERROR_NOT_SUPPORTED -> "Not Supported". */
HM_EXPORT const char *
nvmlErrorString(nvmlReturn_t error)
{
    static __thread char phrase[128];
    const char *name = name_of(error);
    size_t length = 0;
    bool start = true;

    if (error == NVML_SUCCESS || name == NULL)
        return error == NVML_SUCCESS ? "Success" : "Unknown Error";
    for (name += strlen("NVML_ERROR_"); *name != '\0' && length + 1 < sizeof(phrase); name++) {
        int letter = (unsigned char)*name;

        phrase[length++] = (char)(letter == '_' ? ' ' : start ? letter : tolower(letter));
        start = letter == '_';
    }
    phrase[length] = '\0';
    return phrase;
}
