/* SPDX-License-Identifier: GPL-2.0-only */
/* Where a higher-half kernel lives. */
#ifndef MEMORY_H
#define MEMORY_H

#define KERNEL_BASE 0xc0000000          /* virtual = physical + KERNEL_BASE for the first 4 MiB */
#define KERNEL_SLOT (KERNEL_BASE >> 22) /* its entry in a page directory */

#define TO_PHYSICAL(p) ((u32)(p) - KERNEL_BASE)

#endif
