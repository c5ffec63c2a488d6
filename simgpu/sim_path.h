/* Where the state lives: HAMIRT_SIM_STATE, else `sim` in the root folder. */
#pragma once

#include "sim_common.h"

/* Writes the path and makes its folder. False when it is too long or the folder can't be made. */
bool hm_path_state(char *path, size_t size);
