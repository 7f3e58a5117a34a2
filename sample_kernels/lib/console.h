/* SPDX-License-Identifier: GPL-2.0-only */
/* The serial console and the way out of the machine. */
#ifndef CONSOLE_H
#define CONSOLE_H

#define EXIT_OK 0x10                    /* QEMU's exit status is (value << 1) | 1: 33 */
#define EXIT_FAILED 0x11                /* 35 */

void console_init(void);
void putchar(char c);

/* %s %c %d %u %x, with an optional width; '-' pads on the right, '0' with zeros. */
void printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

void machine_exit(int value) __attribute__((noreturn));

#endif
