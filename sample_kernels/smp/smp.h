/* SPDX-License-Identifier: GPL-2.0-only */
/* Constants that C and the start-up code share. */
#ifndef SMP_H
#define SMP_H

#define MOST_PROCESSORS 8               /* APIC IDs are below this */
#define STACK_SHIFT 12
#define STARTUP_PAGE 0x8000             /* below 1 MiB, at a page */

#define LAPIC 0xfee00000
#define LAPIC_ID 0x20

#endif
