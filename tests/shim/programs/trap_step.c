/* An engine's steps: something long, and short things behind it that are launched while the card is at that. */
#include "trap.h"

#define ENGINE_NS (8 * MS)
#define ROUNDS 20
#define BEHIND 10
#define FOLLOWERS 30
#define FOLLOWER_NS (300 * 1000ull)
#define PAIRS 4000
#define PAUSES 400
#define PAUSED_NS (50 * 1000ull)
#define PAUSE_NS (200 * 1000ull)

static void
run(CUstream stream, unsigned int blocks, uint64_t ns)
{
    spin_on(spin_function, blocks, stream, ns);
}

static void
know(CUstream stream, unsigned int blocks, uint64_t ns)
{
    for (int i = 0; i < 4; i++) {
        run(stream, blocks, ns);
        CHECK(cuStreamSynchronize(stream));
    }
}

/* Says in how many rounds all short ones were launched before the long one was half over. */
static void
behind(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    uint64_t early = 0;

    know(stream, 1, ENGINE_NS);
    know(stream, 2, SHORT_NS);
    say("ready", 0);
    hear();
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t start = now_ns();

        run(stream, 1, ENGINE_NS);
        for (int k = 0; k < BEHIND; k++)
            run(stream, 2, SHORT_NS);
        early += now_ns() - start < ENGINE_NS / 2;
        CHECK(cuStreamSynchronize(stream));
    }
    say("early", early);
}

/* Launches something long, hears a line, and says of each that follows that it was launched. */
static void
follow(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    unsigned int blocks = *argument == 'l' ? 1 : 2;

    know(stream, 1, LONG_NS);
    know(stream, 2, FOLLOWER_NS);
    say("launched", now_ns() + LONG_NS);
    run(stream, 1, LONG_NS);
    hear();
    for (uint64_t i = 0; i < FOLLOWERS; i++) {
        run(stream, blocks, FOLLOWER_NS);
        say("follower", i);
    }
    CHECK(cuStreamSynchronize(stream));
}

/* Says how often the second of two was launched before the first was half over. */
static void
one_by_one(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    uint64_t early = 0;

    know(stream, 2, FOLLOWER_NS);
    for (int i = 0; i < PAIRS; i++) {
        uint64_t start;

        run(stream, 2, FOLLOWER_NS);
        start = now_ns();
        run(stream, 2, FOLLOWER_NS);
        early += now_ns() - start < FOLLOWER_NS / 2;
        CHECK(cuStreamSynchronize(stream));
    }
    say("early", early);
}

/* Says how many microseconds it took to have the card do something now and then. */
static void
pause_often(void)
{
    CUstream stream = make_stream(CU_STREAM_NON_BLOCKING);
    uint64_t begun;

    know(stream, 2, PAUSED_NS);
    hear();
    begun = now_ns();
    for (int i = 0; i < PAUSES; i++) {
        uint64_t until = now_ns() + PAUSED_NS + PAUSE_NS;

        run(stream, 2, PAUSED_NS);
        while (now_ns() < until)
            ;
    }
    say("took", (now_ns() - begun) / 1000);
    hear();
}

/* Not before the test has set the gate. */
int
main(int argc, char **argv)
{
    static const struct scenario scenarios[] = {{"behind", behind},
                                                {"follow", follow},
                                                {"pause", pause_often},
                                                {"one by one", one_by_one},
                                                {NULL, NULL}};

    hear();
    return run_one(scenarios, argc, argv);
}
