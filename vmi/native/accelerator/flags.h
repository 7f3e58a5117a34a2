// SPDX-License-Identifier: GPL-2.0-only
/* The arithmetic flags of instructions that are left in the middle: see flags.c. */

#ifndef FLAGS_H
#define FLAGS_H

#include <stdint.h>

struct flag_operations { /* the emulator library's numbers */
    uint32_t movi_i32;
    uint32_t movi_i64;
    uint32_t call;
    uint32_t discard;
    uint32_t insn_start;
};

/*
 * Have each instruction of the block in the making compute its flags before all else that it does.
 *
 * context: what the library makes code with; compute_all: its function that computes all flags.
 */
void flags_first(void *context, const struct flag_operations *numbers, const void *compute_all);

#endif
