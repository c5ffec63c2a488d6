/* A program that has nothing to do with GPUs, as any image has many. */
#include <stdio.h>
#include <stdlib.h>

int
main(int count, char **argument)
{
    printf("%d %s %s\n", count, argument[count - 1], getenv("HOME") != NULL ? getenv("HOME") : "-");
    return 7;
}
