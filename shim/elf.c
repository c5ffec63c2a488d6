/* The real dlsym can't be asked for through dlsym: ours would answer. So it is read out of libc's own symbol table. */
#include "resolve.h"

#include <elf.h>
#include <link.h>
#include <string.h>

struct search {
    const char *name;
    void *found;
};

/* The number of symbols, from the chains of the GNU hash table: the end of the last chain. */
static uint32_t
symbol_count(const uint32_t *gnu_hash)
{
    uint32_t buckets = gnu_hash[0], first = gnu_hash[1], last = 0;
    const uint32_t *bucket = gnu_hash + 4 + gnu_hash[2] * (sizeof(ElfW(Addr)) / 4);
    const uint32_t *chain = bucket + buckets;

    for (uint32_t i = 0; i < buckets; i++)
        if (bucket[i] > last)
            last = bucket[i];
    if (last < first)
        return first;
    while ((chain[last - first] & 1) == 0)
        last++;
    return last + 1;
}

static int
look(struct dl_phdr_info *info, size_t size, void *argument)
{
    struct search *search = argument;
    const ElfW(Dyn) *dynamic = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    const uint32_t *hash = NULL, *gnu_hash = NULL;
    uint32_t count;

    (void)size;
    if (strstr(info->dlpi_name, "/libc.so.6") == NULL &&
        strstr(info->dlpi_name, "/libdl.so.2") == NULL)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++) {
        if (dynamic->d_tag == DT_SYMTAB)
            symbols = (const ElfW(Sym) *)dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_STRTAB)
            strings = (const char *)dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_HASH)
            hash = (const uint32_t *)dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_GNU_HASH)
            gnu_hash = (const uint32_t *)dynamic->d_un.d_ptr;
    }
    if (symbols == NULL || strings == NULL || (hash == NULL && gnu_hash == NULL))
        return 0;
    count = hash != NULL ? hash[1] : symbol_count(gnu_hash);
    for (uint32_t i = 0; i < count; i++) {
        if (ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC || symbols[i].st_shndx == SHN_UNDEF ||
            strcmp(strings + symbols[i].st_name, search->name) != 0)
            continue;
        search->found = (void *)(info->dlpi_addr + symbols[i].st_value);
        return 1;
    }
    return 0;
}

void *
hm_elf_find(const char *name)
{
    struct search search = {name, NULL};

    dl_iterate_phdr(look, &search);
    return search.found;
}
