/* What config.c and standalone.c tell each other about a tenant that HAMi's variables make. */
#pragma once
#include "tenant.h"

/* The limits that hm_config_standalone read. */
const struct hm_limits *hm_config_limits(void);

/* Log what the variables ask for that is not done: said once for a tenant, by the process that
 * makes its pages. */
void hm_config_log_notes(void);
