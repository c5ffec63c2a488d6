#include "cuda_stream.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>

#include "sim_clock.h"

#define LOOK_AGAIN_NS 50000

static sem_t work;
static bool started;

/* Looks after queued operations as long as there are any. The only thread that runs the
 * application's host functions, as the driver's own thread is. */
static void *
helper(void *unused)
{
    (void)unused;
    for (;;) {
        sem_wait(&work);
        hm_driver_lock();
        while (hm_streams_queued()) {
            hm_streams_pump(true);
            hm_driver_unlock();
            hm_clock_pause(LOOK_AGAIN_NS);
            hm_driver_lock();
        }
        hm_driver_unlock();
    }
    return NULL;
}

static bool
start(void)
{
    pthread_t thread;
    sigset_t all;
    sigset_t before;
    int failed;

    sem_init(&work, 0, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(&thread, NULL, helper, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed == 0)
        pthread_detach(thread);
    else
        fprintf(stderr, "simgpu: no thread for host functions\n");
    return failed == 0;
}

void
hm_helper_wake(void)
{
    if (!started)
        started = start();
    if (started)
        sem_post(&work);
}
