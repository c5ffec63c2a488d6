/*
 * Code and what it takes of the card: variables, and the local memory of kernels.
 * module_steps variables|library|local|claim|code|file PATH
 */
#include "steps.h"

#define HEAD ".version 6.0\n.target sm_50\n.address_size 64\n\n"

/* 256 MiB of variables, and kernels that use some and none of them. */
static const char large[] = HEAD ".visible .global .align 4 .b8 big[268435456];\n"
                                 ".visible .entry uses()\n{\n"
                                 "    .reg .b32 %r<2>;\n"
                                 "    .reg .b64 %rd<2>;\n"
                                 "    mov.u64 %rd1, big;\n"
                                 "    mov.u32 %r1, 7;\n"
                                 "    st.global.u32 [%rd1+4096], %r1;\n"
                                 "    ret;\n}\n"
                                 ".visible .entry other()\n{\n    ret;\n}\n";

/* A kernel with so much local memory a thread, indexed by what is only known when it runs. */
#define LOCAL(name, bytes)                               \
    ".visible .entry " name "(.param .u32 p_index)\n{\n" \
    "    .local .align 8 .b8 frame[" bytes "];\n"        \
    "    .reg .b32 %r<6>;\n"                             \
    "    .reg .b64 %rd<5>;\n"                            \
    "    ld.param.u32 %r1, [p_index];\n"                 \
    "    mov.u64 %rd1, frame;\n"                         \
    "    mul.wide.u32 %rd2, %r1, 4;\n"                   \
    "    add.u64 %rd3, %rd1, %rd2;\n"                    \
    "    mov.u32 %r2, %tid.x;\n"                         \
    "    st.local.u32 [%rd3], %r2;\n"                    \
    "    ld.local.u32 %r3, [%rd3+8];\n"                  \
    "    st.local.u32 [%rd3+16], %r3;\n"                 \
    "    ret;\n}\n"

static const char local[] = HEAD LOCAL("local_512", "512") LOCAL("local_4k", "4096")
    LOCAL("local_2k", "2048") LOCAL("local_16k", "16384") LOCAL("local_256k", "262144");

static void
run(CUfunction function)
{
    unsigned int index = 3;
    void *arguments[] = {&index};

    CHECK(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, NULL, arguments, NULL));
    CHECK(cuCtxSynchronize());
}

static void
variables(void)
{
    CUmodule module, second = NULL;
    CUfunction function;
    CUdeviceptr address;
    size_t bytes;

    CHECK(cuModuleLoadData(&module, large));
    stop("loaded");
    CHECK(cuModuleGetFunction(&function, module, "other"));
    CHECK(cuModuleGetGlobal(&address, &bytes, module, "big"));
    CHECK(cuModuleGetFunction(&function, module, "uses"));
    run(function);
    stop("used");
    answer("second", cuModuleLoadData(&second, large));
    if (second != NULL)
        CHECK(cuModuleUnload(second));
    stop("second-unloaded");
    CHECK(cuModuleUnload(module));
    stop("unloaded");
    answer("nonsense", cuModuleLoadData(&module, "this is no module"));
}

static void
library(void)
{
    CUlibrary library, second;
    CUdeviceptr address;
    CUfunction function;
    CUkernel kernel;
    CUresult result;
    size_t bytes;

    CHECK(cuLibraryLoadData(&library, large, NULL, NULL, 0, NULL, NULL, 0));
    stop("library-loaded");
    CHECK(cuLibraryGetKernel(&kernel, library, "other"));
    CHECK(cuKernelGetFunction(&function, kernel));
    run(function);
    stop("library-used");
    CHECK(cuLibraryGetGlobal(&address, &bytes, library, "big"));
    stop("library-global");
    result = cuLibraryLoadData(&second, large, NULL, NULL, 0, NULL, NULL, 0);
    answer("second-library", result);
    if (result == CUDA_SUCCESS) {
        answer("second-kernel", cuLibraryGetKernel(&kernel, second, "uses"));
        answer("second-global", cuLibraryGetGlobal(&address, &bytes, second, "big"));
        CHECK(cuLibraryUnload(second));
    }
    CHECK(cuLibraryUnload(library));
    stop("library-unloaded");
}

/* A stop behind each function and each launch. What a function will need is charged when it is handed out. */
static void
grow(void)
{
    static const char *const names[] = {"local_512", "local_4k", "local_2k", "local_16k",
                                        "local_256k"};
    CUfunction function;
    CUmodule module;
    CUresult result;

    CHECK(cuModuleLoadData(&module, local));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        result = cuModuleGetFunction(&function, module, names[i]);
        answer(names[i], result);
        if (result != CUDA_SUCCESS)
            continue;
        stop("found");
        run(function);
        stop("run");
    }
    CHECK(cuModuleUnload(module));
}

/* Fill the room that is left once a function is known, and only then launch it. */
static void
claim(void)
{
    CUdeviceptr blocks[4096], extra;
    unsigned int count = 0;
    CUfunction function;
    CUmodule module;

    CHECK(cuModuleLoadData(&module, local));
    CHECK(cuModuleGetFunction(&function, module, "local_16k"));
    while (count < 4096 && cuMemAlloc(&blocks[count], 64 * MIB) == CUDA_SUCCESS)
        count++;
    stop("filled");
    run(function);
    answer("over", cuMemAlloc(&extra, 64 * MIB));
    stop("run-full");
    while (count > 0)
        CHECK(cuMemFree(blocks[--count]));
    CHECK(cuModuleUnload(module));
}

/* Up to the cap with memory, and then modules on top. Code is small on a card, so there all of them may fit. */
static void
code(void)
{
    CUresult result = CUDA_SUCCESS;
    CUdeviceptr block;
    CUmodule module;

    while (cuMemAlloc(&block, 16 * MIB) == CUDA_SUCCESS)
        ;
    stop("filled");
    for (int i = 0; i < 200 && result == CUDA_SUCCESS; i++)
        result = cuModuleLoadData(&module, local);
    answer("module", result);
    stop("loaded");
}

static void
file(const char *path)
{
    CUlibrary library;
    CUmodule module;

    answer("module-file", cuModuleLoad(&module, path));
    answer("library-file", cuLibraryLoadFromFile(&library, path, NULL, NULL, 0, NULL, NULL, 0));
}

int
main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "variables";

    start();
    if (strcmp(what, "variables") == 0)
        variables();
    else if (strcmp(what, "library") == 0)
        library();
    else if (strcmp(what, "local") == 0)
        grow();
    else if (strcmp(what, "claim") == 0)
        claim();
    else if (strcmp(what, "code") == 0)
        code();
    else
        file(count > 2 ? arguments[2] : "/nonexistent");
    return 0;
}
