/*
 * The two kernels that the simulated driver knows by name, and one that it does not, as PTX for
 * sm_50 and later.
 *
 * hm_fill(ptr, value, n): n words of 32 bits at ptr become value. hm_spin(ns): one thread waits ns
 * nanoseconds. hm_add(ptr, value, n): adds value to each word; the simulated driver executes
 * nothing for it.
 */
#ifndef HM_BENCH_KERNELS_H
#define HM_BENCH_KERNELS_H
#include "driver.h"

/* A grid-stride loop over n words; `body` works on the word at %rd7 with the value in %r1. */
#define HM_PTX_LOOP(name, body)                                                           \
    ".visible .entry " name "(.param .u64 p_ptr, .param .u32 p_value, .param .u64 p_n)\n" \
    "{\n"                                                                                 \
    "    .reg .pred %p<2>;\n"                                                             \
    "    .reg .b32 %r<8>;\n"                                                              \
    "    .reg .b64 %rd<10>;\n"                                                            \
    "    ld.param.u64 %rd1, [p_ptr];\n"                                                   \
    "    ld.param.u32 %r1, [p_value];\n"                                                  \
    "    ld.param.u64 %rd2, [p_n];\n"                                                     \
    "    cvta.to.global.u64 %rd1, %rd1;\n"                                                \
    "    mov.u32 %r2, %ctaid.x;\n"                                                        \
    "    mov.u32 %r3, %ntid.x;\n"                                                         \
    "    mov.u32 %r4, %tid.x;\n"                                                          \
    "    mul.wide.u32 %rd3, %r2, %r3;\n"                                                  \
    "    cvt.u64.u32 %rd4, %r4;\n"                                                        \
    "    add.u64 %rd3, %rd3, %rd4;\n"                                                     \
    "    mov.u32 %r5, %nctaid.x;\n"                                                       \
    "    mul.wide.u32 %rd5, %r5, %r3;\n"                                                  \
    "LOOP:\n"                                                                             \
    "    setp.ge.u64 %p1, %rd3, %rd2;\n"                                                  \
    "    @%p1 bra DONE;\n"                                                                \
    "    shl.b64 %rd6, %rd3, 2;\n"                                                        \
    "    add.u64 %rd7, %rd1, %rd6;\n" body "    add.u64 %rd3, %rd3, %rd5;\n"              \
    "    bra LOOP;\n"                                                                     \
    "DONE:\n"                                                                             \
    "    ret;\n"                                                                          \
    "}\n"

#define HM_PTX_HEAD ".version 6.0\n.target sm_50\n.address_size 64\n\n"

static const char hm_ptx[] = HM_PTX_HEAD HM_PTX_LOOP("hm_fill", "    st.global.u32 [%rd7], %r1;\n")
    HM_PTX_LOOP("hm_add",
                "    ld.global.u32 %r6, [%rd7];\n"
                "    add.u32 %r6, %r6, %r1;\n"
                "    st.global.u32 [%rd7], %r6;\n") ".visible .entry hm_spin(.param .u64 p_ns)\n"
                                                    "{\n"
                                                    "    .reg .pred %p<2>;\n"
                                                    "    .reg .b64 %rd<5>;\n"
                                                    "    ld.param.u64 %rd1, [p_ns];\n"
                                                    "    mov.u64 %rd2, %globaltimer;\n"
                                                    "WAIT:\n"
                                                    "    mov.u64 %rd3, %globaltimer;\n"
                                                    "    sub.u64 %rd4, %rd3, %rd2;\n"
                                                    "    setp.lt.u64 %p1, %rd4, %rd1;\n"
                                                    "    @%p1 bra WAIT;\n"
                                                    "    ret;\n"
                                                    "}\n"
                                                    ".visible .entry hm_empty()\n{\n    ret;\n}\n";

struct hm_kernels {
    CUmodule module;
    CUfunction fill, add, spin, empty;
};

static inline void
hm_kernels_load(struct hm_kernels *kernels)
{
    CHECK(cu.cuModuleLoadData(&kernels->module, hm_ptx));
    CHECK(cu.cuModuleGetFunction(&kernels->fill, kernels->module, "hm_fill"));
    CHECK(cu.cuModuleGetFunction(&kernels->add, kernels->module, "hm_add"));
    CHECK(cu.cuModuleGetFunction(&kernels->spin, kernels->module, "hm_spin"));
    CHECK(cu.cuModuleGetFunction(&kernels->empty, kernels->module, "hm_empty"));
}

/* hm_fill and hm_add take the same arguments; words counts 32-bit words. */
static inline CUresult
hm_launch_words(CUfunction kernel, CUstream stream, CUdeviceptr ptr, uint32_t value, uint64_t words)
{
    void *arguments[] = {&ptr, &value, &words};
    unsigned blocks = words / 256 < 1 ? 1 : words / 256 > 1024 ? 1024 : (unsigned)(words / 256);

    return cu.cuLaunchKernel(kernel, blocks, 1, 1, 256, 1, 1, 0, stream, arguments, NULL);
}

static inline CUresult
hm_launch_spin(CUfunction kernel, CUstream stream, uint64_t ns)
{
    void *arguments[] = {&ns};

    return cu.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL);
}

/* Hash of `words` 32-bit words of device memory, through a host copy. */
static inline uint64_t
hm_device_hash(CUdeviceptr ptr, size_t words)
{
    uint32_t *host = calloc(words, sizeof *host);
    uint64_t hash;

    if (host == NULL)
        hm_die("no host memory for %zu words", words);
    CHECK(cu.cuMemcpyDtoH(host, ptr, words * sizeof *host));
    hash = hm_hash(host, words * sizeof *host);
    free(host);
    return hash;
}

#endif
