/* What was charged for which pointer or handle of this process: a hash table with a lock for each stripe of it. */
#include "quota.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define STRIPES 64
#define CHAINS 256 /* in a stripe */

struct node {
    struct hm_object object;
    struct node *next;
};

static struct stripe {
    pthread_mutex_t mutex;
    struct node *chain[CHAINS];
} stripes[STRIPES] = {[0 ... STRIPES - 1] = {.mutex = PTHREAD_MUTEX_INITIALIZER}};

static uint64_t
hash(enum hm_type type, uint64_t key)
{
    return ((key ^ (uint64_t)type << 56) * 0x9e3779b97f4a7c15u) >>
           32; /* Fibonacci hashing: pointers differ high up */
}

static struct stripe *
stripe_of(uint64_t at)
{
    return &stripes[at % STRIPES];
}

/* Where the pointer to the node stands, or the end of its chain. The stripe is locked. */
static struct node **
place(struct stripe *stripe, uint64_t at, enum hm_type type, uint64_t key)
{
    struct node **link = &stripe->chain[at / STRIPES % CHAINS];

    while (*link != NULL && ((*link)->object.key != key || (*link)->object.type != type))
        link = &(*link)->next;
    return link;
}

bool
hm_object_put(const struct hm_object *object)
{
    uint64_t at = hash(object->type, object->key);
    struct stripe *stripe = stripe_of(at);
    struct node *node = malloc(sizeof(*node)), **link;

    if (node == NULL)
        return false;
    *node = (struct node){*object, NULL};
    pthread_mutex_lock(&stripe->mutex);
    link = place(stripe, at, object->type, object->key);
    node->next = *link;
    __atomic_store_n(link, node, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&stripe->mutex);
    return true;
}

bool
hm_object_take(enum hm_type type, uint64_t key, struct hm_object *object)
{
    uint64_t at = hash(type, key);
    struct stripe *stripe = stripe_of(at);
    struct node **link, *node;

    if (__atomic_load_n(&stripe->chain[at / STRIPES % CHAINS], __ATOMIC_RELAXED) == NULL)
        return false; /* whoever got this key saw it put here, by whatever handed the key over */
    pthread_mutex_lock(&stripe->mutex);
    link = place(stripe, at, type, key);
    node = *link;
    if (node != NULL)
        __atomic_store_n(link, node->next, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&stripe->mutex);
    if (node == NULL)
        return false;
    *object = node->object;
    free(node);
    hm_quota_begin(&object->charge);
    return true;
}

bool
hm_object_look(enum hm_type type, uint64_t key, struct hm_object *object)
{
    uint64_t at = hash(type, key);
    struct stripe *stripe = stripe_of(at);
    struct node *node;

    pthread_mutex_lock(&stripe->mutex);
    node = *place(stripe, at, type, key);
    if (node != NULL)
        *object = node->object;
    pthread_mutex_unlock(&stripe->mutex);
    return node != NULL;
}

bool
hm_object_change(enum hm_type type, uint64_t key, void (*change)(struct hm_object *, void *),
                 void *argument)
{
    uint64_t at = hash(type, key);
    struct stripe *stripe = stripe_of(at);
    struct node *node;

    pthread_mutex_lock(&stripe->mutex);
    node = *place(stripe, at, type, key);
    if (node != NULL)
        change(&node->object, argument);
    pthread_mutex_unlock(&stripe->mutex);
    return node != NULL;
}

/* Unlink the nodes that died with the context (NULL: all of them). The stripe is locked. */
static struct node *
unlink_dead(struct stripe *stripe, CUcontext context)
{
    struct node *dead = NULL;

    for (size_t i = 0; i < CHAINS; i++) {
        struct node **link = &stripe->chain[i];

        while (*link != NULL) {
            struct node *node = *link;

            if (context != NULL && node->object.context != context) {
                link = &node->next;
                continue;
            }
            __atomic_store_n(link, node->next, __ATOMIC_RELAXED);
            node->next = dead;
            dead = node;
        }
    }
    return dead;
}

static void
free_nodes(struct node *node, bool release)
{
    while (node != NULL) {
        struct node *next = node->next;

        if (release)
            hm_quota_release(&node->object.charge);
        free(node);
        node = next;
    }
}

void
hm_object_purge(CUcontext context)
{
    for (size_t i = 0; context != NULL && i < STRIPES; i++) {
        struct node *dead;

        pthread_mutex_lock(&stripes[i].mutex);
        dead = unlink_dead(&stripes[i], context);
        pthread_mutex_unlock(&stripes[i].mutex);
        free_nodes(dead, true);
    }
}

void
hm_object_before_fork(void)
{
    for (size_t i = 0; i < STRIPES; i++)
        pthread_mutex_lock(&stripes[i].mutex);
}

void
hm_object_after_fork(bool child)
{
    for (size_t i = 0; i < STRIPES; i++) {
        if (child)
            free_nodes(unlink_dead(&stripes[i], NULL), false);
        pthread_mutex_unlock(&stripes[i].mutex);
    }
}
