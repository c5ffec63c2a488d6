#include "cuda_capture.h"
#include "cuda_function.h"
#include "cuda_memory.h"

#include <stdlib.h>
#include <string.h>

#define OTHER_KERNEL_NS 10000
#define FILL_BYTES_PER_NS 1000
#define MAX_THREADS 1024

/* The buffer form: a list of (tag, value) pairs. */
static const char *
argument_buffer(void **extra)
{
    for (size_t i = 0; extra != NULL && extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
            return extra[i + 1];
    }
    return NULL;
}

/* Where argument `index` is, or NULL. */
static const void *
argument(const struct hm_launch *launch, size_t index)
{
    const char *buffer = argument_buffer(launch->extra);

    if (index >= launch->function->parameter_count)
        return NULL;
    if (launch->parameters != NULL)
        return launch->parameters[index];
    return buffer != NULL ? buffer + launch->function->parameter_offset[index] : NULL;
}

static bool
argument_number(const struct hm_launch *launch, size_t index, uint64_t *number)
{
    const void *value = argument(launch, index);

    if (value == NULL || launch->function->parameter_bytes[index] > sizeof(*number))
        return false;
    *number = 0;
    memcpy(number, value, launch->function->parameter_bytes[index]);
    return true;
}

static CUresult
prepare_spin(const struct hm_launch *launch, struct hm_op *op)
{
    uint64_t ns;

    if (!argument_number(launch, 0, &ns))
        return CUDA_ERROR_INVALID_VALUE;
    op->length_ns = (int64_t)ns;
    return CUDA_SUCCESS;
}

static CUresult
prepare_fill(const struct hm_launch *launch, struct hm_op *op)
{
    uint64_t value;

    op->kind = HM_OP_FILL;
    if (!argument_number(launch, 0, &op->fill.address) || !argument_number(launch, 1, &value) ||
        !argument_number(launch, 2, &op->fill.count))
        return CUDA_ERROR_INVALID_VALUE;
    op->fill.value = (unsigned char)value;
    op->length_ns = OTHER_KERNEL_NS + (int64_t)(op->fill.count / FILL_BYTES_PER_NS);
    return CUDA_SUCCESS;
}

static CUresult
prepare_collective(const struct hm_launch *launch, struct hm_op *op)
{
    op->kind = HM_OP_MEET;
    if (!argument_number(launch, 0, &op->meet.address) ||
        !argument_number(launch, 1, &op->meet.ranks) || op->meet.address == 0 ||
        op->meet.ranks == 0)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

CUresult
hm_launch_prepare(const struct hm_launch *launch, struct hm_op *op)
{
    *op = (struct hm_op){.kind = HM_OP_WORK, .length_ns = OTHER_KERNEL_NS};
    if (launch->function == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    for (size_t i = 0; i < launch->function->parameter_count; i++) {
        if (argument(launch, i) == NULL)
            return CUDA_ERROR_INVALID_VALUE;
    }
    if (strcmp(launch->function->name, "hm_spin") == 0)
        return prepare_spin(launch, op);
    if (strcmp(launch->function->name, "hm_fill") == 0)
        return prepare_fill(launch, op);
    if (strcmp(launch->function->name, "ncclDevKernel_sim") == 0)
        return prepare_collective(launch, op);
    return CUDA_SUCCESS;
}

CUresult
hm_launch_local_memory(struct hm_context *ctx, const struct hm_function *function)
{
    size_t *stack = &ctx->limits[CU_LIMIT_STACK_SIZE], before = *stack;
    CUresult result;

    if (function->local_bytes <= before)
        return CUDA_SUCCESS;
    *stack = function->local_bytes; /* the driver raises the limit itself (580) */
    result = hm_context_fit_limits(ctx);
    if (result != CUDA_SUCCESS)
        *stack = before;
    return result;
}

/* Pointers first, the values behind them. */
void **
hm_arguments_copy(const struct hm_launch *launch)
{
    size_t count = launch->function->parameter_count;
    size_t bytes = 0;
    void **copy;
    char *values;

    if (count == 0)
        return NULL;
    for (size_t i = 0; i < count; i++)
        bytes += hm_round_up(launch->function->parameter_bytes[i], sizeof(void *));
    copy = hm_allocate(count * sizeof(*copy) + bytes);
    values = (char *)(copy + count);
    for (size_t i = 0; i < count; i++) {
        memcpy(values, argument(launch, i), launch->function->parameter_bytes[i]);
        copy[i] = values;
        values += hm_round_up(launch->function->parameter_bytes[i], sizeof(void *));
    }
    return copy;
}

void
hm_arguments_free(void **arguments)
{
    free(arguments);
}

static CUresult
check_shape(const CUDA_KERNEL_NODE_PARAMS *kernel, const struct hm_function *function)
{
    uint64_t threads = (uint64_t)kernel->blockDimX * kernel->blockDimY * kernel->blockDimZ;

    if (kernel->gridDimX == 0 || kernel->gridDimY == 0 || kernel->gridDimZ == 0 || threads == 0 ||
        threads > MAX_THREADS || (int64_t)kernel->sharedMemBytes > function->dynamic_shared_max)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

static CUresult
capture_launch(struct hm_stream *stream, const CUDA_KERNEL_NODE_PARAMS *kernel)
{
    struct hm_node *node = hm_node_new(stream->capture->graph, CU_GRAPH_NODE_TYPE_KERNEL);
    CUresult result = hm_node_set_kernel(node, kernel);

    if (result != CUDA_SUCCESS)
        hm_node_delete(node);
    else
        hm_capture_append(stream, node);
    return result;
}

static CUresult
launch(const struct hm_call *call, CUstream handle, const CUDA_KERNEL_NODE_PARAMS *kernel)
{
    struct hm_launch asked = {
        .function = hm_function_find(kernel->func),
        .parameters = kernel->kernelParams,
        .extra = kernel->extra,
    };
    struct hm_stream *stream;
    struct hm_op op;
    CUresult result = hm_stream_find(call, handle, &stream);

    if (result == CUDA_SUCCESS)
        result = hm_capture_check(stream);
    if (result == CUDA_SUCCESS)
        result = hm_launch_prepare(&asked, &op);
    if (result == CUDA_SUCCESS)
        result = check_shape(kernel, asked.function);
    if (result == CUDA_SUCCESS)
        result = hm_launch_local_memory(stream->ctx, asked.function);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream->capture != NULL)
        return capture_launch(stream, kernel);
    hm_stream_submit(stream, &op);
    return CUDA_SUCCESS;
}

HM_EXPORT CUresult
cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
               unsigned int block_x, unsigned int block_y, unsigned int block_z,
               unsigned int shared_bytes, CUstream stream, void **parameters, void **extra)
{
    HM_ENTER(HM_CURRENT);
    CUDA_KERNEL_NODE_PARAMS kernel = {function, grid_x,       grid_y,     grid_z, block_x, block_y,
                                      block_z,  shared_bytes, parameters, extra,  NULL,    NULL};

    return launch(&call, stream, &kernel);
}

HM_EXPORT CUresult
cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                          unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                          unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                          void **parameters)
{
    HM_ENTER(HM_CURRENT);
    CUDA_KERNEL_NODE_PARAMS kernel = {function, grid_x,       grid_y,     grid_z, block_x, block_y,
                                      block_z,  shared_bytes, parameters, NULL,   NULL,    NULL};

    return launch(&call, stream, &kernel);
}

HM_EXPORT CUresult
cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra)
{
    HM_ENTER(HM_CURRENT);
    CUDA_KERNEL_NODE_PARAMS kernel;

    if (config == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    kernel = (CUDA_KERNEL_NODE_PARAMS){
        function,
        config->gridDimX,
        config->gridDimY,
        config->gridDimZ,
        config->blockDimX,
        config->blockDimY,
        config->blockDimZ,
        config->sharedMemBytes,
        parameters,
        extra,
        NULL,
        NULL,
    };
    return launch(&call, config->hStream, &kernel);
}
