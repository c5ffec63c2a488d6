#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

void
hm_log(const char *format, ...)
{
    char line[512];
    va_list arguments;
    int length = snprintf(line, sizeof(line), "hamirt: ");

    va_start(arguments, format);
    length += vsnprintf(line + length, sizeof(line) - (size_t)length - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof(line) - 2)
        length = (int)sizeof(line) - 2;
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)length) < 0)
        return; /* nobody listens: not the program's problem */
}
