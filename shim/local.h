/*
 * Local memory: the driver holds it for every thread that the card can run, as much as the most demanding kernel
 * launched so far needs. It grows inside a launch, which is too late to say no, so it is charged as overhead when a
 * program gets hold of a function, by the function's own figure.
 */
#pragma once
#include "quota.h"

/* Bytes of the card for so many bytes a thread; whole blocks. */
uint64_t hm_local_bytes(int device, uint64_t thread_bytes);

/* The calling thread's context is of the device. A function that needs thread_bytes is about to be handed out: charge
   what it adds to what is held or claimed. False: out of memory, counted. */
bool hm_local_claim(int device, uint64_t thread_bytes);

/* What is claimed and was not yet seen to be held: to be added to an overhead measured through NVML. */
uint64_t hm_local_pending(int device);

/* The last context of the device is gone, and its functions. */
void hm_local_forget(int device);
