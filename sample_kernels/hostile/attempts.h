/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel tries, each in the form of a function that takes its argument in EAX. */
#ifndef ATTEMPTS_H
#define ATTEMPTS_H

#define LEAVE 0x81                      /* ring 3 code, or code that an iret leads to, gives up by this */

#ifndef __ASSEMBLER__
#include "x86.h"

void try_ltr(void), try_lldt(void), try_ds(void), try_ss(void), try_lss(void), try_lar(void), try_lsl(void), try_verr(void);
void try_verw(void), try_call(void), try_jump(void), try_return(void), try_iret(void), try_popf(void);
void try_int(void), try_user_int(void), try_user_sensitive(void);

extern u32 result;                      /* what an attempt found, if it was not refused */
extern u32 other;                       /* a second argument: SS and EFLAGS of a frame */
extern u8 int_number, user_int_number;  /* operands of the INT instructions */
#endif
#endif
