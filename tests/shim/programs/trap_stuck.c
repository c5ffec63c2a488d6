/*
 * One stream waits for a host function or a value, which the next line on standard input brings; another one works.
 *
 *     trap_stuck host|value
 */
#include "trap.h"

static CUdeviceptr told; /* by host and card alike */

static void CUDA_CB
wait_for_line(void *unused)
{
    (void)unused;
    hear();
}

int
main(int argc, char **argv)
{
    bool by_value = argc > 1 && strcmp(argv[1], "value") == 0;
    static uint32_t value;
    CUstream waits, works;
    char line[16];

    begin();
    waits = make_stream(CU_STREAM_NON_BLOCKING);
    works = make_stream(CU_STREAM_NON_BLOCKING);
    told = (CUdeviceptr)&value;
    if (by_value)
        CHECK(cuStreamWaitValue32(waits, told, 1, CU_STREAM_WAIT_VALUE_GEQ));
    else
        CHECK(cuLaunchHostFunc(waits, wait_for_line, NULL));
    spin(waits, SHORT_NS);
    say("ready", 0);
    for (int i = 0; cuStreamQuery(waits) != CUDA_SUCCESS; i++) {
        spin(works, SHORT_NS);
        CHECK(cuStreamSynchronize(works));
        if (by_value && i == 200)
            value = fgets(line, sizeof(line), stdin) != NULL;
    }
    CHECK(cuStreamSynchronize(waits));
    return 0;
}
