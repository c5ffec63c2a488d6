#include "cuda_object.h"

#include "cuda_handle.h"

void
hm_objects_delete(struct hm_context *ctx)
{
    void *object;

    while ((object = hm_handle_any(HM_EVENT, ctx)) != NULL)
        hm_event_delete(object);
    while ((object = hm_handle_any(HM_MODULE, ctx)) != NULL)
        hm_module_delete(object);
    while ((object = hm_handle_any(HM_MIPMAP, ctx)) != NULL)
        hm_mipmap_delete(object);
    while ((object = hm_handle_any(HM_ARRAY, ctx)) != NULL)
        hm_array_delete(object);
    while ((object = hm_handle_any(HM_EXTERNAL, ctx)) != NULL)
        hm_external_delete(object);
}
