/* SPDX-License-Identifier: GPL-2.0-only */
/* Formatted output over whatever putchar() is linked in: the kernel's or a user program's. */
#include <stdarg.h>
#include "x86.h"
#include "console.h"

static void pad(char c, int n)
{
        while (n-- > 0)
                putchar(c);
}

static void field(const char *s, int width, int left, char fill)
{
        int length = 0;
        while (s[length])
                length++;
        if (!left)
                pad(fill, width - length);
        for (const char *p = s; *p; p++)
                putchar(*p);
        if (left)
                pad(' ', width - length);
}

static const char *digits(char *end, u32 value, u32 base, int negative)
{
        *end = 0;
        do
                *--end = "0123456789abcdef"[value % base];
        while (value /= base);
        if (negative)
                *--end = '-';
        return end;
}

void printf(const char *format, ...)
{
        char buffer[16], *end = buffer + sizeof(buffer) - 1;
        va_list args;

        va_start(args, format);
        for (const char *p = format; *p; p++) {
                if (*p != '%') {
                        putchar(*p);
                        continue;
                }
                int left = 0, width = 0, n;
                char fill = ' ';
                if (*++p == '-')
                        left = 1, p++;
                if (*p == '0')
                        fill = '0';
                while (*p >= '0' && *p <= '9')
                        width = width * 10 + *p++ - '0';
                switch (*p) {
                case 's':
                        field(va_arg(args, const char *), width, left, ' ');
                        break;
                case 'c':
                        putchar(va_arg(args, int));
                        break;
                case 'd':
                        n = va_arg(args, int);
                        field(digits(end, n < 0 ? -(u32)n : (u32)n, 10, n < 0), width, left, fill);
                        break;
                case 'u':
                        field(digits(end, va_arg(args, u32), 10, 0), width, left, fill);
                        break;
                case 'x':
                        field(digits(end, va_arg(args, u32), 16, 0), width, left, fill);
                        break;
                default:
                        putchar(*p);
                }
        }
        va_end(args);
}
