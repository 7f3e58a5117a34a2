/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entry of a kernel linked at KERNEL_BASE + 1 MiB and loaded at 1 MiB. Until paging is on the code runs at
 * its physical address: every address it uses is its symbol minus KERNEL_BASE.
 */
#include "multiboot.h"
#include "memory.h"
#include "vmi_guest.h"

        MULTIBOOT_HEADER

        .text
        .globl  _start
_start:
        /* One 4 MiB page, twice: where the code is now and where it belongs. */
        movl    $0x83, boot_directory - KERNEL_BASE
        movl    $0x83, boot_directory - KERNEL_BASE + KERNEL_SLOT * 4
        mov     $boot_directory - KERNEL_BASE, %ecx
        VMI_INSN mov %cr4, %edx
        or      $0x10, %edx             /* CR4.PSE */
        VMI_INSN mov %edx, %cr4
        VMI_INSN mov %ecx, %cr3
        VMI_INSN mov %cr0, %edx
        or      $0x80010000, %edx       /* CR0.PG and CR0.WP */
        VMI_INSN mov %edx, %cr0
        mov     $high, %ecx
        jmp     *%ecx
high:
        mov     $stack_top, %esp
        push    $0
        VMI_INSN popf
        push    %ebx
        push    %eax
        call    kmain                   /* does not return */

        .bss
        .globl  boot_directory
        .p2align 12
boot_directory:
        .skip   4096
        .skip   8192
stack_top:

        .section .note.GNU-stack, "", @progbits
