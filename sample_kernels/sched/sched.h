/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel and its processes agree on. */
#ifndef SCHED_H
#define SCHED_H

#include "x86.h"

#define USER_START 0x00400000           /* the program; everything up to USER_END belongs to the process */
#define USER_CLOCK 0x007e0000           /* a page with the number of timer ticks, not writable */
#define USER_END 0x00800000             /* the stack grows down from here */

#define SYSCALL_VECTOR 0x80             /* number in EAX, arguments in EBX and ECX, result in EAX */

enum { SYS_EXIT, SYS_WRITE, SYS_GETPID, SYS_YIELD, SYS_SLEEP, SYS_SEND, SYS_RECEIVE, SYSCALLS };

enum {                                  /* process numbers: they choose the work */
        COLLECTOR = 1, PRIMES, CRC, SORT, PI, LOGARITHM, SPIN_A, SPIN_B, SLEEPER, TRESPASSER, OUTLAW, PROCESSES,
};

enum { EXIT_KILLED = 99 };              /* exit status of a process that broke the rules */

struct message {
        u32 from, value;
};

#endif
