/* Finding the tenant, once, on the first use of a hook; and keeping the process's state right across fork. */
#include "tenant.h"

#include "context.h"
#include "gate.h"
#include "helper.h"
#include "log.h"
#include "overhead.h"
#include "physical.h"
#include "pool.h"
#include "quota.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONTAINER_LIMITS "/run/hamirt/ro/limits"
#define CONTAINER_USAGE "/run/hamirt/rw/usage"

struct hm_tenant hm_tenant;
uint8_t hm_tenant_known; /* 1 + enum hm_tenant_state once found */

static void
before_fork(void)
{
    hm_overhead_before_fork();
    hm_object_before_fork();
    hm_region_before_fork();
}

static void
after_fork_parent(void)
{
    hm_region_after_fork_parent();
    hm_object_after_fork(false);
    hm_overhead_after_fork_parent();
}

static void
after_fork_child(void)
{
    hm_region_after_fork_child();
    hm_object_after_fork(true);
    hm_pool_after_fork_child();
    hm_graph_after_fork_child();
    hm_physical_after_fork_child();
    hm_overhead_after_fork_child();
    hm_context_after_fork_child();
    hm_helper_after_fork_child();
    hm_gate_after_fork_child();
}

/* Point hm_tenant at its two files. False: there is no tenant, or *error says what is wrong with the variables. */
static bool
locate(char *error, size_t error_size)
{
    const char *folder = secure_getenv("HAMIRT_TENANT_DIR");
    struct hm_limits limits = {0};
    char standalone[200];

    if (access(CONTAINER_LIMITS, F_OK) == 0) {
        snprintf(hm_tenant.limits_path, sizeof(hm_tenant.limits_path), CONTAINER_LIMITS);
        snprintf(hm_tenant.usage_path, sizeof(hm_tenant.usage_path), CONTAINER_USAGE);
        return true;
    }
    if (folder == NULL) {
        if (!hm_config_standalone(&limits, error, error_size) ||
            !hm_config_folder(standalone, sizeof(standalone), error, error_size))
            return false;
        folder = standalone;
    }
    if (snprintf(hm_tenant.limits_path, sizeof(hm_tenant.limits_path), "%s/ro/limits", folder) >=
            (int)sizeof(hm_tenant.limits_path) ||
        snprintf(hm_tenant.usage_path, sizeof(hm_tenant.usage_path), "%s/rw/usage", folder) >=
            (int)sizeof(hm_tenant.usage_path)) {
        snprintf(error, error_size, "the tenant's folder has too long a name: %s", folder);
        return false;
    }
    return true;
}

static void
find(void)
{
    char error[400] = "";
    enum hm_tenant_state state = HM_INERT;

    if (locate(error, sizeof(error)) && hm_region_map(&hm_tenant, error, sizeof(error)))
        state = HM_ACTIVE;
    else if (error[0] != '\0')
        state = hm_tenant.limits != NULL && hm_tenant.limits->on_error == HM_ALLOW ? HM_INERT
                                                                                   : HM_BROKEN;
    if (error[0] != '\0')
        hm_log("%s; %s", error,
               state == HM_BROKEN ? "so CUDA is refused in this process (on_error is deny)"
                                  : "so this process is NOT limited (on_error is allow)");
    if (state == HM_ACTIVE)
        pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    __atomic_store_n(&hm_tenant_known, 1 + state,
                     __ATOMIC_RELEASE); /* pairs with the acquire in hm_active */
}

enum hm_tenant_state
hm_tenant_state(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, find);
    return (enum hm_tenant_state)(hm_tenant_known - 1);
}
