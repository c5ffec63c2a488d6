#include "cuda_driver.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The card named by an index, or -1. */
static int
card_by_index(const char *entry)
{
    char *end;
    long index = strtol(entry, &end, 10);

    if (end == entry || *end != '\0' || index < 0 || index >= (long)hm_driver.state->cards)
        return -1;
    return (int)index;
}

/* The only card whose UUID starts with `entry`, or -1. */
static int
card_by_uuid(const char *entry)
{
    int found = -1;

    for (uint32_t card = 0; card < hm_driver.state->cards; card++) {
        char uuid[HM_UUID_TEXT];

        hm_card_uuid_text(card, uuid);
        if (strncasecmp(entry, uuid, strlen(entry)) != 0)
            continue;
        if (found >= 0)
            return -1;
        found = (int)card;
    }
    return found;
}

static bool
listed(uint32_t card)
{
    for (int i = 0; i < hm_driver.device_count; i++) {
        if (hm_driver.cards[i] == card)
            return true;
    }
    return false;
}

static void
read_list(char *list)
{
    char *rest = NULL;

    for (char *entry = strtok_r(list, ",", &rest); entry != NULL;
         entry = strtok_r(NULL, ",", &rest)) {
        int card;

        entry += strspn(entry, " \t");
        entry[strcspn(entry, " \t")] = '\0';
        card = strncmp(entry, "GPU-", 4) == 0 ? card_by_uuid(entry) : card_by_index(entry);
        if (card < 0)
            return;
        if (listed((uint32_t)card)) {
            /* The driver shows no device at all when one is named twice. */
            hm_driver.device_count = 0;
            return;
        }
        hm_driver.cards[hm_driver.device_count++] = (uint32_t)card;
    }
}

void
hm_visible_read(void)
{
    const char *variable = getenv("CUDA_VISIBLE_DEVICES");
    char *list;

    hm_driver.device_count = 0;
    if (variable == NULL) {
        for (uint32_t card = 0; card < hm_driver.state->cards; card++)
            hm_driver.cards[hm_driver.device_count++] = card;
        return;
    }
    list = strdup(variable);
    if (list != NULL)
        read_list(list);
    free(list);
}
