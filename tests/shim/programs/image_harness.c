/*
 * The parser of module images on its own: images from standard input, each behind its length (8 bytes), are laid so
 * that they end where memory ends. Prints what it says of each, and of the services seen so far; a load beyond an image's end is a crash.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image.c"
#include "ptx.c"

int
main(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t bytes;

    while (fread(&bytes, sizeof(bytes), 1, stdin) == 1) {
        size_t room = (bytes / page + 1) * page;
        char *memory =
            mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char *image = memory + room - bytes;

        if (memory == MAP_FAILED || mprotect(memory + room, page, PROT_NONE) != 0 ||
            fread(image, 1, bytes, stdin) != bytes)
            return 2;
        printf("%" PRIu64, hm_image_variables(image));
        printf(" %" PRIu32 "\n", hm_image_services());
        munmap(memory, room + page);
    }
    return 0;
}
