/*
 * Tries what can take memory behind the allocator's back, on a full card: exceed KIND BYTES
 * LIMIT_MIB HOLD_MS.
 *
 * KIND: local (a kernel with BYTES of local memory a thread), global (a module with a global array
 * of BYTES), stack, heap, printf (cuCtxSetLimit to BYTES, then a kernel that uses it). It first
 * fills with cuMemAlloc until it is refused, as fill.c does. Last line: "HMRESULT {}".
 */
#include "driver.h"

#include "kernels.h"

#define MIB (1024ull * 1024)

static char source[4096];

/* A kernel that writes and reads its local array at an index known only at run time. */
static void
source_local(size_t bytes)
{
    snprintf(source, sizeof source,
             HM_PTX_HEAD ".visible .entry hm_probe(.param .u64 p_ptr, .param .u32 p_index)\n"
                         "{\n"
                         "    .local .align 16 .b8 depot[%zu];\n"
                         "    .reg .b32 %%r<4>;\n"
                         "    .reg .b64 %%rd<6>;\n"
                         "    ld.param.u64 %%rd4, [p_ptr];\n"
                         "    cvta.to.global.u64 %%rd4, %%rd4;\n"
                         "    ld.param.u32 %%r1, [p_index];\n"
                         "    mov.u64 %%rd1, depot;\n"
                         "    mul.wide.u32 %%rd2, %%r1, 4;\n"
                         "    add.u64 %%rd3, %%rd1, %%rd2;\n"
                         "    st.local.u32 [%%rd3], %%r1;\n"
                         "    st.local.u32 [%%rd3+4], %%r1;\n"
                         "    ld.local.u32 %%r2, [%%rd1];\n"
                         "    st.global.u32 [%%rd4], %%r2;\n"
                         "    ret;\n"
                         "}\n",
             bytes);
}

/* A module whose global array the driver takes when it is loaded. */
static void
source_global(size_t bytes)
{
    snprintf(source, sizeof source,
             HM_PTX_HEAD ".global .align 16 .b8 depot[%zu];\n"
                         ".visible .entry hm_probe(.param .u64 p_ptr, .param .u32 p_index)\n"
                         "{\n"
                         "    .reg .b32 %%r<4>;\n"
                         "    .reg .b64 %%rd<6>;\n"
                         "    ld.param.u32 %%r1, [p_index];\n"
                         "    mov.u64 %%rd1, depot;\n"
                         "    mul.wide.u32 %%rd2, %%r1, 4;\n"
                         "    add.u64 %%rd3, %%rd1, %%rd2;\n"
                         "    st.global.u32 [%%rd3], %%r1;\n"
                         "    ret;\n"
                         "}\n",
             bytes);
}

/* A kernel that calls the device's malloc, so that the driver provides its heap. */
static void
source_heap(void)
{
    snprintf(source, sizeof source,
             HM_PTX_HEAD ".extern .func (.param .b64 r) malloc (.param .b64 n);\n"
                         ".visible .entry hm_probe(.param .u64 p_ptr, .param .u32 p_index)\n"
                         "{\n"
                         "    .reg .b64 %%rd<6>;\n"
                         "    ld.param.u64 %%rd1, [p_ptr];\n"
                         "    cvta.to.global.u64 %%rd1, %%rd1;\n"
                         "    mov.u64 %%rd2, 64;\n"
                         "    {\n"
                         "    .param .b64 n;\n"
                         "    .param .b64 r;\n"
                         "    st.param.b64 [n], %%rd2;\n"
                         "    call.uni (r), malloc, (n);\n"
                         "    ld.param.b64 %%rd3, [r];\n"
                         "    }\n"
                         "    st.global.u64 [%%rd1], %%rd3;\n"
                         "    ret;\n"
                         "}\n");
}

/* A kernel that prints, so that the driver provides the buffer for it. */
static void
source_printf(void)
{
    snprintf(source, sizeof source,
             HM_PTX_HEAD ".extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);\n"
                         ".global .align 1 .b8 text[2] = {10, 0};\n"
                         ".visible .entry hm_probe(.param .u64 p_ptr, .param .u32 p_index)\n"
                         "{\n"
                         "    .reg .b32 %%r<4>;\n"
                         "    .reg .b64 %%rd<6>;\n"
                         "    mov.u64 %%rd1, text;\n"
                         "    cvta.global.u64 %%rd2, %%rd1;\n"
                         "    mov.u64 %%rd3, 0;\n"
                         "    {\n"
                         "    .param .b64 f;\n"
                         "    .param .b64 a;\n"
                         "    .param .b32 r;\n"
                         "    st.param.b64 [f], %%rd2;\n"
                         "    st.param.b64 [a], %%rd3;\n"
                         "    call.uni (r), vprintf, (f, a);\n"
                         "    ld.param.b32 %%r1, [r];\n"
                         "    }\n"
                         "    ret;\n"
                         "}\n");
}

/* Does what KIND names; the code of the step that failed, or CUDA_SUCCESS. */
static CUresult
attempt(const char *kind, size_t bytes, CUdeviceptr small, const char **step)
{
    uint32_t index = 0;
    void *arguments[] = {&small, &index};
    CUmodule module;
    CUfunction probe;
    CUresult code = CUDA_SUCCESS;

    *step = "limit";
    if (strcmp(kind, "local") == 0) {
        source_local(bytes);
    } else if (strcmp(kind, "global") == 0) {
        source_global(bytes);
    } else if (strcmp(kind, "stack") == 0) {
        source_local(64);
        code = cu.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, bytes);
    } else if (strcmp(kind, "heap") == 0) {
        source_heap();
        code = cu.cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, bytes);
    } else if (strcmp(kind, "printf") == 0) {
        source_printf();
        code = cu.cuCtxSetLimit(CU_LIMIT_PRINTF_FIFO_SIZE, bytes);
    } else {
        hm_die("no such kind: %s", kind);
    }
    if (code != CUDA_SUCCESS)
        return code;
    *step = "load";
    code = cu.cuModuleLoadData(&module, source);
    if (code != CUDA_SUCCESS)
        return code;
    *step = "function";
    code = cu.cuModuleGetFunction(&probe, module, "hm_probe");
    if (code != CUDA_SUCCESS)
        return code;
    *step = "launch";
    code = cu.cuLaunchKernel(probe, 1, 1, 1, 32, 1, 1, 0, NULL, arguments, NULL);
    if (code != CUDA_SUCCESS)
        return code;
    *step = "sync";
    return cu.cuCtxSynchronize();
}

int
main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "local", *step = "";
    size_t bytes = argc > 2 ? strtoull(argv[2], NULL, 10) : 1024, obtained = 0;
    size_t limit = (argc > 3 ? strtoull(argv[3], NULL, 10) : 1024) * MIB;
    long hold_ms = argc > 4 ? atol(argv[4]) : 300;
    CUdevice device;
    CUdeviceptr small, ptr;
    CUresult code;
    uint64_t filled_ns, tried_ns;

    hm_start(&device);
    CHECK(cu.cuMemAlloc(&small, 4096));
    for (size_t size = 256 * MIB; size >= 2 * MIB; size /= 2) {
        while (obtained + size <= limit && cu.cuMemAlloc(&ptr, size) == CUDA_SUCCESS)
            obtained += size;
    }
    filled_ns = hm_now_ns();
    hm_sleep_ms(hold_ms);
    code = attempt(kind, bytes, small, &step);
    tried_ns = hm_now_ns();
    hm_sleep_ms(hold_ms);
    printf("HMRESULT {\"obtained_bytes\": %zu, \"code\": \"%s\", \"step\": \"%s\", "
           "\"phases_ns\": {\"filled\": %llu, \"tried\": %llu, \"end\": %llu}}\n",
           obtained, hm_error(code), step, (unsigned long long)filled_ns,
           (unsigned long long)tried_ns, (unsigned long long)hm_now_ns());
    return 0;
}
