/*
 * HAMi's variables, for a container that has no page of hamirt's: read as HAMi's device plugin sets
 * them, and as libvgpu.so reads them where that is safe. A value that can't be read is an error,
 * never "unlimited".
 */
#include "config.h"

#include "log.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MEMORY "CUDA_DEVICE_MEMORY_LIMIT"
#define PROCESSORS "CUDA_DEVICE_SM_LIMIT"
#define PRIORITY "CUDA_TASK_PRIORITY"
#define POLICY "GPU_CORE_UTILIZATION_POLICY"
#define OVERSUBSCRIBE "CUDA_OVERSUBSCRIBE"
#define VISIBLE "NVIDIA_VISIBLE_DEVICES"
#define NAME_BYTES 48
#define WEIGHT 100 /* of everybody who asks for no other, here and in hamirt/model.py */
#define NOTES 8
#define NOTE_BYTES 200

/* A limit as the variables give it: one for all devices, and one for each. 0: not limited. */
struct setting {
    bool set; /* at least one of the variables is there */
    uint64_t all;
    uint64_t device[HM_DEVICES]; /* in the container's order */
};

static struct hm_limits wanted;
static char notes[NOTES][NOTE_BYTES];
static int note_count;

const struct hm_limits *
hm_config_limits(void)
{
    return &wanted;
}

void
hm_config_log_notes(void)
{
    for (int i = 0; i < note_count; i++)
        hm_log("%s", notes[i]);
}

__attribute__((format(printf, 1, 2))) static void
note(const char *format, ...)
{
    va_list arguments;

    if (note_count == NOTES)
        return;
    va_start(arguments, format);
    vsnprintf(notes[note_count++], NOTE_BYTES, format, arguments);
    va_end(arguments);
}

/* Bytes, or a number with k, m or g and maybe a b behind that: powers of 1024. */
static bool
parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "kmg";
    const char *unit;
    int shift = 0;
    char *end;

    errno = 0;
    *bytes = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || errno != 0)
        return false;
    unit = *end != '\0' ? strchr(units, tolower((unsigned char)*end)) : NULL;
    if (unit != NULL) {
        shift = 10 * (int)(unit - units + 1);
        end++;
    }
    if (tolower((unsigned char)*end) == 'b')
        end++;
    if (*end != '\0' || *bytes > UINT64_MAX >> shift)
        return false;
    *bytes <<= shift;
    return true;
}

static bool
parse_number(const char *text, uint64_t most, uint64_t *number)
{
    char *end;

    errno = 0;
    *number = strtoull(text, &end, 10);
    return isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0 && *number <= most;
}

static bool
parse_percent(const char *text, uint64_t *percent)
{
    return parse_number(text, 100, percent);
}

static bool
bad(const char *name, const char *value, const char *meant, char *error, size_t error_size)
{
    snprintf(error, error_size, "%s=%s is not %s", name, value, meant);
    return false;
}

/* Read name, and name_0 to name_15. As in libvgpu.so, a device's own 0 gives way to the first. */
static bool
read_setting(struct setting *setting, const char *name, bool (*parse)(const char *, uint64_t *),
             const char *meant, char *error, size_t error_size)
{
    for (int i = -1; i < HM_DEVICES; i++) {
        uint64_t *number = i < 0 ? &setting->all : &setting->device[i];
        char full[NAME_BYTES];
        const char *value;

        snprintf(full, sizeof(full), i < 0 ? "%s" : "%s_%d", name, i);
        value = getenv(full);
        if (value != NULL && !parse(value, number))
            return bad(full, value, meant, error, error_size);
        setting->set |= value != NULL;
        if (i >= 0 && *number == 0)
            *number = setting->all;
    }
    return true;
}

/* How GPU time is shared: the caps by device, and whose work comes first. */
struct sharing {
    struct setting percent;
    enum hm_class latency_class;
    bool disabled;
};

static bool
read_sharing(struct sharing *sharing, char *error, size_t error_size)
{
    const char *priority = getenv(PRIORITY), *policy = getenv(POLICY);
    uint64_t number = 1;

    if (!read_setting(&sharing->percent, PROCESSORS, parse_percent, "a percentage from 0 to 100",
                      error, error_size))
        return false;
    if (priority != NULL && !parse_number(priority, INT32_MAX, &number))
        return bad(PRIORITY, priority, "a number from 0", error, error_size);
    if (policy != NULL && strcasecmp(policy, "default") != 0 && strcasecmp(policy, "force") != 0 &&
        strcasecmp(policy, "disable") != 0)
        return bad(POLICY, policy, "default, force or disable", error, error_size);
    sharing->latency_class = number == 0 ? HM_LATENCY : HM_NORMAL;
    sharing->disabled = policy != NULL && strcasecmp(policy, "disable") == 0;
    return true;
}

/* True as HAMi's device plugin reads a yes; what is no yes leaves the limits on. */
static bool
is_true(const char *value)
{
    static const char *const yes[] = {"1", "t", "true"};

    for (size_t i = 0; value != NULL && i < sizeof(yes) / sizeof(yes[0]); i++)
        if (strcasecmp(value, yes[i]) == 0)
            return true;
    return false;
}

/*
 * Whether the container was given a device that NVML shows it: only a privileged container sees
 * others. seen is how many it sees. Indices are the node's, which count only if all the node's
 * devices are seen.
 */
static bool
is_given(const char *visible, const char *uuid, unsigned int index, unsigned int seen)
{
    unsigned int named = 1;

    for (const char *at = visible; *at != '\0'; at++)
        named += *at == ',';
    if (seen <= named || (strncmp(visible, "GPU-", 4) != 0 && !isdigit((unsigned char)visible[0])))
        return true; /* "all", "void", a folder, or nothing to leave out */
    for (const char *entry = visible; entry != NULL; entry = strchr(entry, ',')) {
        size_t length;

        entry += *entry == ',';
        length = strcspn(entry, ",");
        if (isdigit((unsigned char)*entry) ? strtoul(entry, NULL, 10) == index
                                           : length > 4 && strncasecmp(uuid, entry, length) == 0)
            return true;
    }
    return false;
}

static bool
add_device(unsigned int index, unsigned int seen, char *error, size_t error_size)
{
    const char *visible = getenv(VISIBLE);
    char uuid[NVML_DEVICE_UUID_V2_BUFFER_SIZE] = "";
    struct hm_limit *device;
    nvmlMemory_t memory = {0};
    nvmlDevice_t handle;

    if (REAL_NVML(nvmlDeviceGetHandleByIndex_v2(index, &handle)) != NVML_SUCCESS)
        return true; /* no permission for it: CUDA does not show it either */
    wanted.node_devices++;
    if (REAL_NVML(nvmlDeviceGetUUID(handle, uuid, sizeof(uuid))) != NVML_SUCCESS ||
        REAL_NVML(nvmlDeviceGetMemoryInfo(handle, &memory)) != NVML_SUCCESS) {
        snprintf(error, error_size,
                 "NVML does not say which card device %u is, so it can't be limited", index);
        return false;
    }
    if (visible != NULL && !is_given(visible, uuid, index, seen))
        return true;
    if (wanted.device_count == HM_DEVICES) {
        snprintf(error, error_size, "this container has more than %d devices", HM_DEVICES);
        return false;
    }
    device = &wanted.device[wanted.device_count++];
    snprintf(device->uuid, sizeof(device->uuid), "%.*s", HM_UUID_BYTES - 1, uuid);
    device->card_bytes = memory.total;
    return true;
}

/* The container's devices, in NVML's order. */
static bool
read_devices(char *error, size_t error_size)
{
    const char *visible = getenv(VISIBLE);
    unsigned int seen = 0;
    nvmlReturn_t result =
        hm_resolve_nvml() ? REAL_NVML(nvmlInit_v2()) : NVML_ERROR_LIBRARY_NOT_FOUND;

    if (visible != NULL && (strncmp(visible, "MIG-", 4) == 0 || strchr(visible, ':') != NULL))
        return bad(VISIBLE, visible, "a whole GPU, and MIG instances are not supported", error,
                   error_size);
    if (result == NVML_SUCCESS)
        result = REAL_NVML(nvmlDeviceGetCount_v2(&seen));
    if (result != NVML_SUCCESS) {
        snprintf(error, error_size,
                 "HAMi's variables limit devices, but NVML does not list them (error %d)",
                 (int)result);
        return false;
    }
    for (unsigned int i = 0; i < seen; i++)
        if (!add_device(i, seen, error, error_size))
            return false;
    return true;
}

static void
set_memory(const struct setting *memory)
{
    for (uint32_t i = 0; i < HM_DEVICES; i++) {
        struct hm_limit *device = &wanted.device[i];
        uint64_t bytes = memory->device[i];

        if (i >= wanted.device_count) {
            if (bytes != memory->all)
                note(MEMORY "_%u has no effect: the container has %u devices", i,
                     wanted.device_count);
            continue;
        }
        if (bytes == 0)
            note("the memory of device %u is NOT limited: its limit is 0 or not set", i);
        if (bytes > device->card_bytes)
            note("device %u has %llu MiB, which is the limit then, not %llu MiB", i,
                 (unsigned long long)device->card_bytes / HM_MIB,
                 (unsigned long long)bytes / HM_MIB);
        device->memory_bytes = bytes < device->card_bytes ? bytes : device->card_bytes;
    }
}

/* All of the time is no cap, as in libvgpu.so. */
static void
set_sharing(const struct sharing *sharing)
{
    bool capped = false;

    for (uint32_t i = 0; i < wanted.device_count; i++) {
        struct hm_limit *device = &wanted.device[i];
        uint64_t percent = sharing->percent.device[i];

        capped |= percent > 0 && percent < 100;
        device->time_percent = percent < 100 && !sharing->disabled ? (uint32_t)percent : 0;
        device->weight = WEIGHT;
        device->latency_class = sharing->latency_class;
    }
    if (capped && sharing->disabled)
        note("GPU time is NOT limited: " POLICY "=disable turns " PROCESSORS " off");
    if (sharing->latency_class == HM_LATENCY)
        note(PRIORITY "=0 has no effect on others: no supervisor arbitrates here");
}

bool
hm_config_standalone(struct hm_limits *limits, char *error, size_t error_size)
{
    struct setting memory = {0};
    struct sharing sharing = {0};

    error[0] = '\0';
    if (is_true(getenv("CUDA_DISABLE_CONTROL")) ||
        !read_setting(&memory, MEMORY, parse_size, "a size: bytes, or a number with k, m or g",
                      error, error_size) ||
        !read_sharing(&sharing, error, error_size) || !(memory.set || sharing.percent.set))
        return false;
    if (is_true(getenv(OVERSUBSCRIBE)))
        note(OVERSUBSCRIBE " has no effect: no memory is moved to the host");
    wanted = (struct hm_limits){.magic = HM_LIMITS_MAGIC,
                                .version = HM_VERSION,
                                .size = sizeof(wanted),
                                .epoch = 1,
                                .on_error = HM_DENY,
                                .tenant = "standalone"};
    if (!read_devices(error, error_size))
        return false;
    set_memory(&memory);
    set_sharing(&sharing);
    *limits = wanted;
    return true;
}
