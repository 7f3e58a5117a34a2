/* SPDX-License-Identifier: GPL-2.0-only */
/* The multiboot 1 header, for assembly. The loader takes addresses from the ELF program headers. */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00000002      /* wants the memory map: the loader then always fills one in */

.macro MULTIBOOT_HEADER
        .section .multiboot, "a"
        .p2align 2
        .long   MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
.endm
