/* SPDX-License-Identifier: GPL-2.0-only */
#include "timer.h"

#define PIC1 0x20
#define PIC2 0xa0
#define PIT 0x40
#define PIT_HERTZ 1193182
#define PIT_ONCE 0x30                   /* channel 0, both bytes, mode 0: one interrupt at the end of the count */
#define PIT_RATE 0x34                   /* channel 0, both bytes, mode 2 */

void pic_init(u16 enabled)
{
        outb(PIC1, 0x11);               /* ICW1: edge triggered, cascade, ICW4 follows */
        outb(PIC1 + 1, IRQ_BASE);
        outb(PIC1 + 1, 0x04);           /* the second controller is on IRQ 2 */
        outb(PIC1 + 1, 0x01);           /* 8086 mode, EOI by hand */
        outb(PIC2, 0x11);
        outb(PIC2 + 1, IRQ_BASE + 8);
        outb(PIC2 + 1, 0x02);
        outb(PIC2 + 1, 0x01);
        outb(PIC1 + 1, ~enabled);
        outb(PIC2 + 1, ~enabled >> 8);
}

void pic_eoi(void)
{
        outb(PIC1, 0x20);
}

int pic_requested(int irq)
{
        outb(PIC1, 0x0a);               /* OCW3: the next read gives the request register */
        return inb(PIC1) >> irq & 1;
}

static void program(u8 mode, u32 count)
{
        outb(PIT + 3, mode);
        outb(PIT, count);
        outb(PIT, count >> 8);
}

void timer_periodic(u32 hertz)
{
        program(PIT_RATE, PIT_HERTZ / hertz);
}

void timer_once(u32 microseconds)
{
        program(PIT_ONCE, microseconds * 1193 / 1000 + 1);
}
