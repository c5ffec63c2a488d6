/*
 * Lists about processes. NVML puts everybody's into an array of ours, and the tenant's are passed
 * on. The arrays have room for as many processes as a tenant can have; where the card has more than
 * that, the slots answer.
 */
#include "view.h"

#define ACCOUNTED 4096 /* processes that a card remembers, at most */

/* The lists of running processes differ in the structure of an entry only. */
#define LISTED(name, device, room, infos, use_slots)                                            \
    ({                                                                                          \
        __typeof__(*(infos)) hm_all[HM_SLOTS];                                                  \
        struct hm_list hm_list = HM_LIST_BYTES(hm_all, usedGpuMemory);                          \
        hm_list.from_slots = use_slots;                                                         \
        hm_list_is_whole(device, room)                                                          \
            ? REAL_NVML(name(device, room, infos))                                              \
            : hm_list_answer(&hm_list, device, REAL_NVML(name(device, &hm_list.count, hm_all)), \
                             NVML_ERROR_INSUFFICIENT_SIZE, room, infos);                        \
    })

HM_HOOK nvmlReturn_t
nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                     nvmlProcessInfo_v1_t *infos)
{
    return LISTED(nvmlDeviceGetComputeRunningProcesses, device, infoCount, infos, true);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                        nvmlProcessInfo_v2_t *infos)
{
    return LISTED(nvmlDeviceGetComputeRunningProcesses_v2, device, infoCount, infos, true);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                        nvmlProcessInfo_t *infos)
{
    return LISTED(nvmlDeviceGetComputeRunningProcesses_v3, device, infoCount, infos, true);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                      nvmlProcessInfo_v1_t *infos)
{
    return LISTED(nvmlDeviceGetGraphicsRunningProcesses, device, infoCount, infos, false);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                         nvmlProcessInfo_v2_t *infos)
{
    return LISTED(nvmlDeviceGetGraphicsRunningProcesses_v2, device, infoCount, infos, false);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                         nvmlProcessInfo_t *infos)
{
    return LISTED(nvmlDeviceGetGraphicsRunningProcesses_v3, device, infoCount, infos, false);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                        nvmlProcessInfo_v1_t *infos)
{
    return LISTED(nvmlDeviceGetMPSComputeRunningProcesses, device, infoCount, infos, false);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                           nvmlProcessInfo_v2_t *infos)
{
    return LISTED(nvmlDeviceGetMPSComputeRunningProcesses_v2, device, infoCount, infos, false);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                           nvmlProcessInfo_t *infos)
{
    return LISTED(nvmlDeviceGetMPSComputeRunningProcesses_v3, device, infoCount, infos, false);
}

/* A version that we do not know could not be filtered: refused, as an older driver would. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_t *plist)
{
    nvmlProcessDetail_v1_t all[HM_SLOTS];
    struct hm_list list = HM_LIST_BYTES(all, usedGpuMemory);
    nvmlProcessDetailList_t ask;
    nvmlReturn_t result;

    if (plist == NULL || hm_list_is_whole(device, &plist->numProcArrayEntries))
        return REAL_NVML(nvmlDeviceGetRunningProcessDetailList(device, plist));
    if (plist->version != nvmlProcessDetailList_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    ask = (nvmlProcessDetailList_t){plist->version, plist->mode, list.count, all};
    result = REAL_NVML(nvmlDeviceGetRunningProcessDetailList(device, &ask));
    list.count = ask.numProcArrayEntries;
    list.from_slots = plist->mode == 0; /* compute processes (580) */
    return hm_list_answer(&list, device, result, NVML_ERROR_INSUFFICIENT_SIZE,
                          &plist->numProcArrayEntries, plist->procArray);
}

/* What NVML wrote is the caller's array already; the tenant's samples move to its front. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *utilization,
                                unsigned int *processSamplesCount,
                                unsigned long long lastSeenTimeStamp)
{
    nvmlReturn_t result = REAL_NVML(nvmlDeviceGetProcessUtilization(
        device, utilization, processSamplesCount, lastSeenTimeStamp));
    struct hm_list list = HM_LIST(utilization);

    if (result != NVML_SUCCESS || hm_list_is_whole(device, processSamplesCount))
        return result;
    list.count = *processSamplesCount;
    hm_list_keep(&list, hm_view_device(device));
    *processSamplesCount = list.count;
    return list.count > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                      nvmlProcessesUtilizationInfo_t *procesesUtilInfo)
{
    nvmlReturn_t result =
        REAL_NVML(nvmlDeviceGetProcessesUtilizationInfo(device, procesesUtilInfo));
    struct hm_list list;

    if (result != NVML_SUCCESS || hm_view_device(device) < 0)
        return result;
    if (procesesUtilInfo->version != nvmlProcessesUtilizationInfo_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    list = (struct hm_list)HM_LIST(procesesUtilInfo->procUtilArray);
    list.count = procesesUtilInfo->processSamplesCount;
    hm_list_keep(&list, hm_view_device(device));
    procesesUtilInfo->processSamplesCount = list.count;
    return list.count > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* The card also remembers what has ended. Of that we can't say whose it was, so it's not shown. */
HM_HOOK nvmlReturn_t
nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count, unsigned int *pids)
{
    unsigned int all[ACCOUNTED];
    struct hm_list list = {.entries = all, .count = ACCOUNTED, .size = sizeof(all[0])};
    nvmlReturn_t result;

    if (hm_list_is_whole(device, count))
        return REAL_NVML(nvmlDeviceGetAccountingPids(device, count, pids));
    result = REAL_NVML(nvmlDeviceGetAccountingPids(device, &list.count, all));
    return hm_list_answer(&list, device, result, NVML_ERROR_INSUFFICIENT_SIZE, count, pids);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned int pid, nvmlAccountingStats_t *stats)
{
    struct hm_list list = {.entries = &pid, .count = 1, .size = sizeof(pid)};
    int ours = hm_view_device(device);

    if (ours >= 0)
        hm_list_keep(&list, ours);
    if (list.count == 0)
        return NVML_ERROR_NOT_FOUND;
    return REAL_NVML(nvmlDeviceGetAccountingStats(device, pid, stats));
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetEncoderSessions(nvmlDevice_t device, unsigned int *sessionCount,
                             nvmlEncoderSessionInfo_t *sessionInfos)
{
    nvmlEncoderSessionInfo_t all[HM_SLOTS];
    struct hm_list list = HM_LIST(all);
    nvmlReturn_t result;

    if (hm_list_is_whole(device, sessionCount))
        return REAL_NVML(nvmlDeviceGetEncoderSessions(device, sessionCount, sessionInfos));
    result = REAL_NVML(nvmlDeviceGetEncoderSessions(device, &list.count, all));
    return hm_list_answer(&list, device, result, NVML_SUCCESS, sessionCount, sessionInfos);
}

HM_HOOK nvmlReturn_t
nvmlDeviceGetFBCSessions(nvmlDevice_t device, unsigned int *sessionCount,
                         nvmlFBCSessionInfo_t *sessionInfo)
{
    nvmlFBCSessionInfo_t all[HM_SLOTS];
    struct hm_list list = HM_LIST(all);
    nvmlReturn_t result;

    if (hm_list_is_whole(device, sessionCount))
        return REAL_NVML(nvmlDeviceGetFBCSessions(device, sessionCount, sessionInfo));
    result = REAL_NVML(nvmlDeviceGetFBCSessions(device, &list.count, all));
    return hm_list_answer(&list, device, result, NVML_SUCCESS, sessionCount, sessionInfo);
}
