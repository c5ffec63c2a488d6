/*
 * Stands in for a program of another machine, which lies beside it as NAME.elf: starts it under QEMU, with the libraries
 * of ROOT. Static, so that a preload in the environment is the program's alone.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MOST_ARGUMENTS 512

int
main(int count, char **argument)
{
    char path[4096];
    char *command[MOST_ARGUMENTS] = {QEMU, "-L", ROOT, "-0", argument[0], path};
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - sizeof(".elf"));

    if (length < 0 || count + 6 > MOST_ARGUMENTS)
        return 125;
    strcpy(path + length, ".elf");
    for (int i = 1; i < count; i++)
        command[5 + i] = argument[i];
    execv(QEMU, command);
    perror(QEMU);
    return 126;
}
