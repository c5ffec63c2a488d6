/* Deletion of what a context owns. Each function also drops the object's handle. */
#pragma once

#include "cuda_driver.h"

struct hm_array;
struct hm_event;
struct hm_external;
struct hm_mipmap;
struct hm_module;

void hm_array_delete(struct hm_array *array);
void hm_event_delete(struct hm_event *event);
void hm_external_delete(struct hm_external *external);
void hm_mipmap_delete(struct hm_mipmap *mipmap);
void hm_module_delete(struct hm_module *module);

/* All of a context's objects but its streams and ranges. */
void hm_objects_delete(struct hm_context *ctx);
