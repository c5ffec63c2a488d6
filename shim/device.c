/* Which device of the driver is which entry of the limits page: by UUID, once, after cuInit. */
#include "tenant.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define DRIVER_DEVICES 64

static struct {
    CUdevice handle;
    int index;
} devices[DRIVER_DEVICES];
static int device_count;
static bool device_ready;

static void
format_uuid(const CUuuid *uuid, char text[HM_UUID_BYTES])
{
    const unsigned char *b = (const unsigned char *)uuid->bytes;

    snprintf(text, HM_UUID_BYTES,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
}

int
hm_device_by_uuid(const char *uuid)
{
    for (uint32_t i = 0; i < hm_tenant.limits->device_count; i++)
        if (strncasecmp(hm_tenant.limits->device[i].uuid, uuid, HM_UUID_BYTES) == 0)
            return (int)i;
    return -1;
}

void
hm_device_init(void)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    int count = 0;

    pthread_mutex_lock(&mutex);
    if (!device_ready && REAL(cuDeviceGetCount(&count)) == CUDA_SUCCESS) {
        for (int i = 0; i < count && i < DRIVER_DEVICES; i++) {
            char text[HM_UUID_BYTES] = "";
            CUuuid uuid;

            devices[i].index = -1;
            if (REAL(cuDeviceGet(&devices[i].handle, i)) == CUDA_SUCCESS &&
                REAL(cuDeviceGetUuid(&uuid, devices[i].handle)) == CUDA_SUCCESS) {
                format_uuid(&uuid, text);
                devices[i].index = hm_device_by_uuid(text);
            }
        }
        device_count = count < DRIVER_DEVICES ? count : DRIVER_DEVICES;
        __atomic_store_n(&device_ready, true,
                         __ATOMIC_RELEASE); /* pairs with the acquire in hm_device_count */
    }
    pthread_mutex_unlock(&mutex);
}

int
hm_device_count(void)
{
    return __atomic_load_n(&device_ready, __ATOMIC_ACQUIRE) ? device_count : 0;
}

int
hm_device_index(CUdevice device)
{
    for (int i = 0; i < hm_device_count(); i++)
        if (devices[i].handle == device)
            return devices[i].index;
    return -1;
}

int
hm_device_current(void)
{
    CUdevice device;

    if (!hm_active() || REAL(cuCtxGetDevice(&device)) != CUDA_SUCCESS)
        return -1;
    return hm_device_index(device);
}

int
hm_device_only(void)
{
    return hm_device_count() == 1 ? devices[0].index : -1;
}

CUdevice
hm_device_handle(int index)
{
    for (int i = 0; i < hm_device_count(); i++)
        if (devices[i].index == index)
            return devices[i].handle;
    return -1;
}
