#include "image.h"

#include "ptx.h"

#include <elf.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FATBIN_MAGIC 0xba55ed50
#define WRAPPER_MAGIC 0x466243b1
#define FATBIN_ENTRIES 256 /* architectures in a fatbin, at most */
#define SECTIONS_AT_ONCE 128
#define SECTIONS 1048576 /* more than that is no cubin */
#define NAME_BYTES 10
#define TEXT_BYTES 4096
#define LONGEST_TEXT_BYTES 268435456
#define LONGEST_NAME_BYTES 16
#define COUNTED_BYTES 4096 /* smaller variables are not worth a look at their section's name */

enum { FATBIN_PTX = 1, FATBIN_ELF = 2 };

struct fatbin {
    uint32_t magic;
    uint16_t version;
    uint16_t header_bytes;
    uint64_t bytes; /* of the entries */
};

struct fatbin_entry {
    uint16_t kind;
    uint16_t version;
    uint32_t header_bytes;
    uint64_t bytes;            /* of what follows the header */
    uint32_t compressed_bytes; /* 0: it is not */
    uint32_t options;
};

/* What the compiler leaves in a program for each fatbin. */
struct wrapper {
    uint32_t magic;
    uint32_t version;
    const void *fatbin;
};

/*
 * Copy from an image that may end, or lie, anywhere: by a system call, which stops where a load would crash. Where it is
 * forbidden (an old seccomp filter) nothing can be said about an image. Returns the bytes copied.
 */
static size_t
peek_some(const void *image, uint64_t offset, void *buffer, size_t bytes)
{
    struct iovec local = {buffer, bytes}, remote = {NULL, bytes};
    ssize_t copied;

    if (offset > UINT64_MAX - (uintptr_t)image)
        return 0;
    remote.iov_base = (void *)((uintptr_t)image + offset);
    copied = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    return copied > 0 ? (size_t)copied : 0;
}

static bool
peek(const void *image, uint64_t offset, void *buffer, size_t bytes)
{
    return peek_some(image, offset, buffer, bytes) == bytes;
}

static uint64_t
plus(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - 1 - b ? UINT64_MAX - 1 : a + b;
}

/* The section holds variables: .nv.global, .nv.global.init and theirs. Shared memory looks the same but for its name. */
static bool
holds_variables(const void *image, const Elf64_Shdr *section, uint64_t names)
{
    char name[NAME_BYTES];

    return (section->sh_flags & SHF_ALLOC) != 0 && section->sh_size >= COUNTED_BYTES &&
           peek(image, plus(names, section->sh_name), name, sizeof(name)) &&
           memcmp(name, ".nv.global", sizeof(name)) == 0;
}

static uint32_t services; /* atomic */

uint32_t
hm_image_services(void)
{
    return __atomic_load_n(&services, __ATOMIC_RELAXED);
}

/* Look for the names of services in a string table. */
static void
scan_names(const void *image, const Elf64_Shdr *section)
{
    static const struct {
        const char *name;
        uint32_t bit;
    } known[] = {{"__assertfail", HM_SERVICE_ASSERT},
                 {"vprintf", HM_SERVICE_PRINTF},
                 {"malloc", HM_SERVICE_MALLOC}};
    char text[TEXT_BYTES];
    uint64_t step = sizeof(text) - LONGEST_NAME_BYTES; /* a name may lie across two pieces */

    for (uint64_t at = 0; at < section->sh_size && at < LONGEST_TEXT_BYTES; at += step) {
        uint64_t rest = section->sh_size - at;
        size_t bytes = peek_some(image, plus(section->sh_offset, at), text,
                                 rest < sizeof(text) ? rest : sizeof(text));

        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
            if (memmem(text, bytes, known[i].name, strlen(known[i].name) + 1) != NULL)
                __atomic_fetch_or(&services, known[i].bit, __ATOMIC_RELAXED);
    }
}

static bool
is_cubin(const Elf64_Ehdr *head)
{
    return memcmp(head->e_ident, ELFMAG, SELFMAG) == 0 && head->e_ident[EI_CLASS] == ELFCLASS64 &&
           head->e_shoff != 0 && head->e_shentsize == sizeof(Elf64_Shdr);
}

static uint64_t
cubin_variables(const void *image)
{
    Elf64_Shdr section[SECTIONS_AT_ONCE], first;
    uint64_t count, name_index, bytes = 0;
    Elf64_Ehdr head;

    if (!peek(image, 0, &head, sizeof(head)) || !is_cubin(&head) ||
        !peek(image, head.e_shoff, &first, sizeof(first)))
        return 0;
    count = head.e_shnum != 0 ? head.e_shnum : first.sh_size; /* so for more than 65280 sections */
    name_index = head.e_shstrndx != SHN_XINDEX ? head.e_shstrndx : first.sh_link;
    if (count > SECTIONS || name_index >= count ||
        !peek(image, plus(head.e_shoff, name_index * sizeof(first)), &first, sizeof(first)))
        return 0;
    for (uint64_t at = 0; at < count; at += SECTIONS_AT_ONCE) {
        uint64_t some = count - at < SECTIONS_AT_ONCE ? count - at : SECTIONS_AT_ONCE;

        if (!peek(image, plus(head.e_shoff, at * sizeof(first)), section, some * sizeof(first)))
            return bytes;
        for (uint64_t i = 0; i < some; i++) {
            if (holds_variables(image, &section[i], first.sh_offset))
                bytes = plus(bytes, section[i].sh_size);
            if (section[i].sh_type == SHT_STRTAB)
                scan_names(image, &section[i]);
        }
    }
    return bytes;
}

/* Text may end behind a page that is there, so it is copied up to the end of a page at a time. */
static uint64_t
ptx_variables(const void *image)
{
    struct hm_ptx ptx = {0};
    char text[TEXT_BYTES];
    uint64_t at = 0;

    while (at < LONGEST_TEXT_BYTES) {
        size_t some = TEXT_BYTES - ((uintptr_t)image + at) % TEXT_BYTES;

        some = peek_some(image, at, text, some);
        if (some == 0 || !hm_ptx_scan(&ptx, text, some))
            break;
        at += some;
    }
    return ptx.bytes;
}

static uint64_t
fatbin_variables(const void *image, const struct fatbin *fatbin)
{
    uint64_t at = fatbin->header_bytes, end = plus(at, fatbin->bytes), most = 0;
    bool readable = false;

    for (int i = 0; i < FATBIN_ENTRIES && at < end; i++) {
        struct fatbin_entry entry;
        uint64_t bytes = 0, payload;

        if (!peek(image, at, &entry, sizeof(entry)) || entry.header_bytes < sizeof(entry))
            break;
        payload = plus(at, entry.header_bytes);
        if (entry.kind == FATBIN_ELF && entry.compressed_bytes != 0)
            __atomic_fetch_or(&services, HM_SERVICE_ASSERT, __ATOMIC_RELAXED);
        else if (entry.kind == FATBIN_ELF && payload < end)
            bytes = cubin_variables((const char *)image + payload);
        else if (entry.kind == FATBIN_PTX && payload < end && entry.compressed_bytes == 0)
            bytes = ptx_variables((const char *)image + payload);
        readable = readable || entry.kind == FATBIN_ELF || entry.compressed_bytes == 0;
        most = bytes > most ? bytes : most;
        at = plus(payload, entry.bytes);
    }
    return readable ? most : HM_IMAGE_UNKNOWN;
}

static bool
read_fatbin(const void *image, struct fatbin *fatbin)
{
    return peek(image, 0, fatbin, sizeof(*fatbin)) && fatbin->magic == FATBIN_MAGIC;
}

uint64_t
hm_image_variables(const void *image)
{
    struct wrapper wrapper;
    struct fatbin fatbin;
    char magic[SELFMAG];

    if (!peek(image, 0, magic, sizeof(magic)))
        return 0;
    if (memcmp(magic, ELFMAG, SELFMAG) == 0)
        return cubin_variables(image);
    if (read_fatbin(image, &fatbin))
        return fatbin_variables(image, &fatbin);
    if (!peek(image, 0, &wrapper, sizeof(wrapper)) || wrapper.magic != WRAPPER_MAGIC)
        return ptx_variables(image);
    return read_fatbin(wrapper.fatbin, &fatbin) ? fatbin_variables(wrapper.fatbin, &fatbin) : 0;
}

uint64_t
hm_image_file_variables(const char *path)
{
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    uint64_t bytes = 0;
    struct stat status;
    void *image;

    if (fd < 0)
        return 0;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
        image = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (image != MAP_FAILED) {
            bytes = hm_image_variables(image);
            munmap(image, (size_t)status.st_size);
        }
    }
    close(fd);
    return bytes;
}
