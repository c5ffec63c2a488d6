/*
 * For the sanitizers, between their library and an instrumented shim: they look their functions up with dlsym before
 * they are ready for instrumented code, and the shim's dlsym would be that. So until main, dlsym is libc's; from then
 * on it is the shim's. Neither libc nor the sanitizer is called to find them. x86-64 only.
 */
#include <link.h>
#include <stdbool.h>
#include <stddef.h>

extern struct r_debug _r_debug;
static bool in_main;

static bool
is(const char *text, const char *name)
{
    while (*text != '\0' && *text == *name)
        text++, name++;
    return *text == *name;
}

static bool
ends_in(const char *text, const char *name)
{
    for (; *text != '\0'; text++)
        if (is(text, name))
            return true;
    return false;
}

/* The last of that name in the table: libc's newest version comes behind the older ones, or is the only one. */
static void *
find(const char *library, const char *name)
{
    struct link_map *map = _r_debug.r_map;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    void *found = NULL;

    while (map != NULL && !ends_in(map->l_name, library))
        map = map->l_next;
    for (const ElfW(Dyn) *entry = map != NULL ? map->l_ld : NULL;
         entry != NULL && entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_SYMTAB)
            symbols = (const ElfW(Sym) *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_STRTAB)
            strings = (const char *)entry->d_un.d_ptr;
    }
    /* The strings lie behind the symbols, as every linker here puts them. */
    for (const ElfW(Sym) *symbol = symbols; symbol != NULL && (const char *)(symbol + 1) <= strings;
         symbol++)
        if (symbol->st_shndx != SHN_UNDEF && symbol->st_value != 0 &&
            is(strings + symbol->st_name, name))
            found = (void *)(map->l_addr + symbol->st_value);
    return found;
}

static __attribute__((used)) void *
early_target(const char *name)
{
    void *target = in_main ? find("/libhamirt.so", name) : NULL;

    return target != NULL ? target : find("/libc.so.6", name);
}

#define ROUTE(name)                                                      \
    static __attribute__((used)) const char early_##name[] = #name;      \
    __asm__(".globl " #name "\n.type " #name ", @function\n" #name ":\n" \
            "push %rdi\npush %rsi\npush %rdx\nlea early_" #name          \
            "(%rip), %rdi\ncall early_target\n"                          \
            "pop %rdx\npop %rsi\npop %rdi\njmp *%rax\n.size " #name ", . - " #name "\n")

ROUTE(dlsym);
ROUTE(dlvsym);

int
__libc_start_main(int (*start)(int, char **, char **), int count, char **argument,
                  void (*init)(void), void (*end)(void), void (*loader_end)(void), void *stack)
{
    int (*next)(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void),
                void (*)(void), void *);

    *(void **)&next = find("/libc.so.6", "__libc_start_main");
    in_main = true;
    return next(start, count, argument, init, end, loader_end, stack);
}
