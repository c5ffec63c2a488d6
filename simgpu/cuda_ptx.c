#include "cuda_module.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bytes of a type such as .u64 or .f32x2, found in one declaration. */
static size_t
type_bytes(const char *declaration)
{
    for (const char *dot = strchr(declaration, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
        if (strchr("ubsf", dot[1]) != NULL && isdigit((unsigned char)dot[2]))
            return strtoul(dot + 2, NULL, 10) / 8;
    }
    return 0;
}

static size_t
alignment(const char *declaration, size_t fallback)
{
    const char *align = strstr(declaration, ".align");

    return align != NULL ? strtoul(align + strlen(".align"), NULL, 10) : fallback;
}

/* All elements of `.align 4 .b8 name[16]`, or of a plain `.u32 name`. */
static size_t
declared_bytes(const char *declaration)
{
    const char *bracket = strchr(declaration, '[');
    size_t count = bracket != NULL ? strtoul(bracket + 1, NULL, 0) : 1;

    return type_bytes(declaration) * count;
}

/* The last name before `[`, `=` or the end. */
static void
declared_name(const char *declaration, char name[HM_NAME_BYTES])
{
    size_t end = strcspn(declaration, "[=;");
    size_t start;

    while (end > 0 && isspace((unsigned char)declaration[end - 1]))
        end--;
    start = end;
    while (start > 0 && strchr(" \t\n\r.", declaration[start - 1]) == NULL)
        start--;
    snprintf(name, HM_NAME_BYTES, "%.*s", (int)(end - start), declaration + start);
}

static void
read_parameter(char *declaration, struct hm_function *function)
{
    size_t index = function->parameter_count;
    size_t bytes = declared_bytes(declaration);
    size_t offset = 0;

    if (strstr(declaration, ".param") == NULL || index == HM_PARAMETERS || bytes == 0)
        return;
    if (index > 0)
        offset = function->parameter_offset[index - 1] + function->parameter_bytes[index - 1];
    function->parameter_offset[index] =
        hm_round_up(offset, alignment(declaration, type_bytes(declaration)));
    function->parameter_bytes[index] = bytes;
    function->parameter_count++;
}

static void
read_parameters(const char *start, const char *end, struct hm_function *function)
{
    char *list = strndup(start, (size_t)(end - start));
    char *rest = NULL;

    for (char *item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest))
        read_parameter(item, function);
    free(list);
}

/* Sums what `.local` and `.shared` declare in a kernel's body. */
static void
read_body(const char *start, const char *end, struct hm_function *function)
{
    const char *line = start;

    while (line < end) {
        size_t length = strcspn(line, ";\n");
        char *statement = strndup(line, length);

        if (strstr(statement, ".local ") != NULL && strstr(statement, ".align") != NULL)
            function->local_bytes += declared_bytes(statement);
        if (strstr(statement, ".shared ") != NULL && strstr(statement, ".align") != NULL)
            function->shared_bytes += declared_bytes(statement);
        free(statement);
        line += length + 1;
    }
}

/* The brace that closes the one at `open`, or the end of the text. */
static const char *
closing(const char *open)
{
    int depth = 0;

    for (; *open != '\0'; open++) {
        depth += (*open == '{') - (*open == '}');
        if (depth == 0)
            break;
    }
    return open;
}

/* Reads one kernel from behind `.entry`; returns where it ends. */
static const char *
read_entry(const char *text, struct hm_module *module)
{
    struct hm_function *function = hm_allocate(sizeof(*function));
    const char *body = text + strcspn(text, "{");
    const char *list = text + strcspn(text, "({");
    const char *end = closing(body);
    size_t length;

    text += strspn(text, " \t\n\r");
    length = strcspn(text, " \t\n\r({;");
    snprintf(function->name, sizeof(function->name), "%.*s", (int)length, text);
    if (*list == '(')
        read_parameters(list + 1, list + strcspn(list, ")"), function);
    read_body(body, end, function);
    function->module = module;
    function->dynamic_shared_max = 49152;
    function->next = module->functions;
    module->functions = function;
    return end;
}

static const char *
read_global(const char *text, struct hm_module *module)
{
    struct hm_global *global = hm_allocate(sizeof(*global));
    size_t length = strcspn(text, ";");
    char *declaration = strndup(text, length);

    declared_name(declaration, global->name);
    global->bytes = declared_bytes(declaration);
    global->offset = hm_round_up(module->global_bytes, 256);
    module->global_bytes = global->offset + global->bytes;
    global->next = module->globals;
    module->globals = global;
    free(declaration);
    return text + length;
}

static bool
starts(const char *text, const char *directive)
{
    size_t length = strlen(directive);

    return strncmp(text, directive, length) == 0 && isspace((unsigned char)text[length]);
}

bool
hm_ptx_read(const char *text, struct hm_module *module)
{
    if (strstr(text, ".version") == NULL || strstr(text, ".target") == NULL)
        return false;
    while (*text != '\0') {
        if (strncmp(text, "//", 2) == 0)
            text += strcspn(text, "\n");
        else if (starts(text, ".entry"))
            text = read_entry(text + strlen(".entry"), module);
        else if (starts(text, ".func"))
            text = closing(text + strcspn(text, "{;"));
        else if (starts(text, ".global") || starts(text, ".const"))
            text = read_global(text, module);
        else if (*text != '\0')
            text++;
    }
    return true;
}
