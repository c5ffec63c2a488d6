/*
 * The driver reads CUDA_VISIBLE_DEVICES in cuInit. For that moment the variable names the tenant's
 * devices by UUID, as far as the program's own value selects them; that value counts devices in the
 * order of the limits page.
 *
 * setenv would not do: other threads may read the environment. So what is exchanged is one pointer,
 * atomically, and nothing that was ever in the environment is freed or changed. What another thread
 * does to the environment in the nanoseconds between our look and the exchange, we see or, like any
 * two writers of it, lose.
 */
#include "log.h"
#include "tenant.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define VARIABLE "CUDA_VISIBLE_DEVICES"
#define NAME_LENGTH (sizeof(VARIABLE)) /* with the "=" */
#define ENTRIES (HM_DEVICES + 1)       /* one too many: a device named twice */
#define TRIES 100                      /* against other threads that change the environment */
#define TEXT_BYTES (NAME_LENGTH + ENTRIES * HM_UUID_BYTES + 1)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* over all of these, never over cuInit */
static int inside;                                        /* calls of cuInit */
static char *ours;                                        /* what we put in; never freed */
static char *own;        /* the program's, in whose place it stands */
static char **published; /* a copy of the environment with ours in front; never freed */

static __thread bool entered __attribute__((tls_model("initial-exec")));

/* What the entry of an index list says: its digits, whatever follows them. -1: nothing. */
static int
by_index(const char *entry, int count)
{
    char *end;
    unsigned int index = (unsigned int)strtoul(entry, &end, 10); /* 32 bits, as the driver has it */

    return end != entry && index < (unsigned int)count ? (int)index : -1;
}

/* The only device whose UUID begins like the entry, as far as that looks like one. -1: none. */
static int
by_uuid(const char *entry, int count)
{
    size_t length = 4;
    int found = -1;

    if (strncmp(entry, "GPU-", 4) != 0)
        return -1;
    while (isxdigit((unsigned char)entry[length]) || entry[length] == '-')
        length++;
    for (int i = 0; length > 4 && i < count; i++) {
        if (strncasecmp(hm_tenant.limits->device[i].uuid, entry, length) != 0)
            continue;
        if (found >= 0)
            return -1;
        found = i;
    }
    return found;
}

/*
 * The devices that a value selects, by the driver's rules (580): the form of the first entry is
 * that of all, the first invalid one ends the list, and a device named twice is an error of cuInit,
 * for which it stays in the list twice.
 */
static int
select_devices(const char *value, int selected[ENTRIES])
{
    int count = (int)hm_tenant.limits->device_count, length = 0;
    int (*find)(const char *, int) = strncmp(value, "GPU-", 4) == 0 ? by_uuid : by_index;
    uint32_t seen = 0;

    for (const char *entry = value; entry != NULL; entry = strchr(entry, ',')) {
        entry += *entry == ',' && entry != value;
        selected[length] = find(entry, count);
        if (selected[length] < 0)
            break;
        if (seen & 1u << selected[length++])
            break;
        seen |= 1u << selected[length - 1];
    }
    return length;
}

/* The variable as the driver is to see it. own_value NULL: the program did not set it. */
static void
write_variable(char text[TEXT_BYTES], const char *own_value)
{
    int selected[ENTRIES], count = (int)hm_tenant.limits->device_count;
    size_t length = NAME_LENGTH;

    for (int i = 0; own_value == NULL && i < count; i++)
        selected[i] = i;
    if (own_value != NULL)
        count = select_devices(own_value, selected);
    memcpy(text, VARIABLE "=", NAME_LENGTH + 1);
    for (int i = 0; i < count; i++)
        length += (size_t)snprintf(text + length, TEXT_BYTES - length, "%s%.*s", i > 0 ? "," : "",
                                   HM_UUID_BYTES - 1, hm_tenant.limits->device[selected[i]].uuid);
    if (count == 0)
        memcpy(text + length, "-1", 3); /* no device */
}

static char **
environment(void)
{
    return __atomic_load_n(&environ,
                           __ATOMIC_ACQUIRE); /* pairs with whoever publishes another array */
}

/* Where the environment has the variable, or NULL. */
static char **
find_variable(void)
{
    for (char **at = environment(); at != NULL && *at != NULL; at++)
        if (strncmp(*at, VARIABLE "=", NAME_LENGTH) == 0)
            return at;
    return NULL;
}

static bool
exchange(char **at, char *from, char *to)
{
    return __atomic_compare_exchange_n(at, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* An environment with ours in front of what is there; the last copy, if it is still in use. */
static bool
publish(void)
{
    char **now = environment(), **copy = published;
    size_t count = 0;

    if (copy != NULL && now == copy + 1) {
        __atomic_store_n(&copy[0], ours, __ATOMIC_RELEASE);
    } else {
        while (now != NULL && now[count] != NULL)
            count++;
        copy = malloc((count + 2) * sizeof(copy[0]));
        if (copy == NULL)
            return false;
        copy[0] = ours;
        memcpy(copy + 1, now, count * sizeof(copy[0]));
        copy[count + 1] = NULL;
    }
    published = copy;
    return __atomic_compare_exchange_n(&environ, &now, copy, false, __ATOMIC_ACQ_REL,
                                       __ATOMIC_RELAXED);
}

/* Put ours in. False: not this time, since another thread was quicker. The mutex is held. */
static bool
put(void)
{
    char text[TEXT_BYTES];
    char **at = find_variable();

    own = at != NULL ? __atomic_load_n(at, __ATOMIC_ACQUIRE) : NULL;
    if (at != NULL && own == NULL)
        return false;
    write_variable(text, own != NULL ? own + NAME_LENGTH : NULL);
    if (ours == NULL || strcmp(ours, text) != 0)
        ours = strdup(text);
    return ours != NULL && (at != NULL ? exchange(at, own, ours) : publish());
}

static void
show(void)
{
    for (int i = 0; i < TRIES; i++)
        if (put())
            return;
    hm_log_once(VARIABLE " could not be set for the driver: it shows more devices than were given");
}

/* Take ours out again, from wherever another thread may have copied it to meanwhile. */
static void
hide(void)
{
    static char nothing[] = VARIABLE; /* without "=" it is no variable */
    char **front = published;

    if (ours == NULL)
        return;
    if (own == NULL && front != NULL &&
        __atomic_compare_exchange_n(&environ, &front, front + 1, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED))
        return;
    for (char **at = environment(); at != NULL && *at != NULL; at++)
        if (exchange(at, ours, own != NULL ? own : nothing))
            return;
}

/* False where the driver shows the right devices by itself, or has read the variable already. */
static bool
is_needed(void)
{
    int count;

    return hm_active() && hm_tenant.limits->node_devices != hm_tenant.limits->device_count &&
           REAL(cuDeviceGetCount(&count)) != CUDA_SUCCESS;
}

void
hm_visible_enter(void)
{
    if (!is_needed())
        return;
    pthread_mutex_lock(&mutex);
    if (inside++ == 0)
        show();
    pthread_mutex_unlock(&mutex);
    entered = true;
}

void
hm_visible_leave(void)
{
    if (!entered)
        return;
    entered = false;
    pthread_mutex_lock(&mutex);
    if (--inside == 0)
        hide();
    pthread_mutex_unlock(&mutex);
}
