/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * COM1, polled: output needs no interrupt, so it works in any state the kernel under test may be in.
 * Lines end in LF alone, which makes the console log a plain text file.
 */
#include "x86.h"
#include "console.h"

#define COM1 0x3f8
#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_LSR (COM1 + 5)
#define LSR_THRE 0x20                   /* the transmitter takes another byte */
#define DEBUG_EXIT 0xf4                 /* QEMU's isa-debug-exit */

void console_init(void)
{
        outb(UART_IER, 0);
        outb(UART_LCR, 0x80);           /* 115200 baud: divisor 1 */
        outb(UART_DATA, 1);
        outb(UART_IER, 0);
        outb(UART_LCR, 0x03);           /* 8 data bits, no parity, 1 stop bit */
        outb(UART_FCR, 0x07);
}

void putchar(char c)
{
        while (!(inb(UART_LSR) & LSR_THRE))
                ;
        outb(UART_DATA, c);
}

void machine_exit(int value)
{
        outb(DEBUG_EXIT, value);
        for (;;)                        /* without the exit port: stop for good */
                asm volatile (VMI_INSN("cli") "\n\t" VMI_INSN("hlt") : : : "memory");
}
