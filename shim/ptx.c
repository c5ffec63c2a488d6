#include "ptx.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES (UINT64_MAX >> 1) /* sums stop there, so that they do not wrap */

static uint64_t
times(uint64_t a, uint64_t b)
{
    uint64_t product;

    return __builtin_mul_overflow(a, b, &product) || product > MOST_BYTES ? MOST_BYTES : product;
}

/* Bytes of a type such as .b8, .f64 or .texref; 0 for another word that begins with a dot. */
static uint64_t
type_bytes(const char *word)
{
    size_t letters = strcspn(word, "0123456789"), length = strlen(word);

    if (word[letters] != '\0' && strspn(word, ".bfusept") >= letters)
        return strtoul(word + letters, NULL, 10) / 8;
    return length > 3 && strcmp(word + length - 3, "ref") == 0 ? 8 : 0;
}

static void
end_word(struct hm_ptx *ptx)
{
    const char *word = ptx->word;

    ptx->word[ptx->length] = '\0';
    ptx->length = 0;
    if (!ptx->declares) {
        ptx->declares = strcmp(word, ".global") == 0;
        ptx->elements = 1;
        ptx->element_bytes = 0;
    } else if (strcmp(word, ".v2") == 0 || strcmp(word, ".v4") == 0) {
        ptx->elements = times(ptx->elements, (uint64_t)(word[2] - '0'));
    } else if (word[0] == '.' && type_bytes(word) > 0) {
        ptx->element_bytes = type_bytes(word);
    }
}

static void
end_declaration(struct hm_ptx *ptx)
{
    uint64_t bytes = times(ptx->elements, ptx->element_bytes);

    ptx->bytes = bytes > MOST_BYTES - ptx->bytes ? MOST_BYTES : ptx->bytes + bytes;
    ptx->declares = false;
}

/* Inside a declaration. An attribute has its argument in parentheses; a parameter that points to .global ends in one. */
static void
read_declared(struct hm_ptx *ptx, char character)
{
    if (character == ']') {
        ptx->word[ptx->length] = '\0';
        ptx->elements = times(ptx->elements, strtoull(ptx->word, NULL, 0));
    } else if (character == ')' && ptx->argument) {
        ptx->argument = false;
    } else if (character == '(') {
        ptx->argument = true;
    } else {
        end_word(ptx);
        if (strchr(";=,)", character) != NULL)
            end_declaration(ptx);
    }
    ptx->length = 0;
}

static void
read_character(struct hm_ptx *ptx, char character)
{
    if (!isspace((unsigned char)character) && strchr(";=,()[]{}", character) == NULL) {
        if (ptx->length < sizeof(ptx->word) - 1)
            ptx->word[ptx->length++] = character;
    } else if (ptx->declares) {
        read_declared(ptx, character);
    } else {
        end_word(ptx);
    }
}

bool
hm_ptx_scan(struct hm_ptx *ptx, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\0')
            return false;
        read_character(ptx, text[i]);
    }
    return true;
}
