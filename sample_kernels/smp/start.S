/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the other processors begin: in real mode, at the page that the start-up message names. The code is copied there; it is
 * data as far as this kernel is concerned. Then a stack of their own, by the APIC ID, and C.
 */
#include "segments.h"
#include "smp.h"

        .section .user, "aw"
        .globl  startup_code, startup_end
        .code16
startup_code:
        cli
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   start_table - startup_code
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $KERNEL_CS, $processor_entry
        .p2align 2
start_gdt:
        .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff
start_table:
        .word   start_table - start_gdt - 1
        .long   STARTUP_PAGE + start_gdt - startup_code
startup_end:

        .text
        .code32
processor_entry:
        mov     $KERNEL_DS, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     LAPIC + LAPIC_ID, %ebx
        shr     $24, %ebx
        mov     %ebx, %esp
        inc     %esp
        shl     $STACK_SHIFT, %esp
        add     $stacks, %esp
        push    %ebx
        call    processor_main          /* does not return */

        .section .note.GNU-stack, "", @progbits
