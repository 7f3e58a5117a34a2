/* SPDX-License-Identifier: GPL-2.0-only */
/* Entry of a kernel that runs where it is loaded: a stack, known flags, and C. */
#include "multiboot.h"
#include "vmi_guest.h"

        MULTIBOOT_HEADER

        .text
        .globl  _start
_start:
        mov     $stack_top, %esp
        push    $0                      /* the loader leaves EFLAGS undefined but for IF and VM */
        VMI_INSN popf
        push    %ebx                    /* multiboot information */
        push    %eax                    /* multiboot magic */
        call    kmain                   /* does not return */

        .bss
        .p2align 4
        .skip   8192
stack_top:

        .section .note.GNU-stack, "", @progbits
