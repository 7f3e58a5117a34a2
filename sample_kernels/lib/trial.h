/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Run a piece of code that may end in a trap. The handler either returns to it or gives it up.
 */
#ifndef TRIAL_H
#define TRIAL_H

#include "x86.h"

extern char user_stack[PAGE_SIZE], user_stack_top[];

/* In ring 0, with `argument` in EAX: back when `entry` returns, or its trap handler calls abandon(). */
void trial(void (*entry)(void), u32 argument);

/* In ring 3, on the user stack, with these EFLAGS: back only by abandon(). */
void trial_user(void (*entry)(void), u32 argument, u32 eflags);

void abandon(void) __attribute__((noreturn));

#endif
