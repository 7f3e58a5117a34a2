/* SPDX-License-Identifier: GPL-2.0-only */
/* The two 8259 interrupt controllers and channel 0 of the 8254 timer. */
#ifndef TIMER_H
#define TIMER_H

#include "x86.h"

#define IRQ_BASE 0x20                   /* vector of IRQ 0 */
#define IRQ_TIMER IRQ_BASE

void pic_init(u16 enabled);             /* bit n set: IRQ n is let through */
void pic_eoi(void);                     /* end of an interrupt of the first controller */
int pic_requested(int irq);             /* is IRQ 0-7 waiting, whatever EFLAGS.IF says? */
void timer_periodic(u32 hertz);
void timer_once(u32 microseconds);      /* at most 54000; also ends the periodic mode */

#endif
