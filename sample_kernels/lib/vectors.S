/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Trap entry: every vector gets a stub that makes the frames alike (an error code of 0 where the
 * processor pushes none, then the vector), and all stubs share one path into C and back.
 */
#include "segments.h"
#include "vmi_guest.h"

        .set    HAVE_ERROR, 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17

        .section .rodata
        .globl  vectors
        .p2align 2
vectors:
        .text
        .set    vector, 0
        .rept   IDT_ENTRIES
1:
        .set    bare, 1
        .if     vector < 32
        .set    bare, !(HAVE_ERROR >> vector & 1)
        .endif
        .if     bare
        push    $0
        .endif
        push    $vector
        jmp     trap_entry
        .pushsection .rodata
        .long   1b
        .popsection
        .set    vector, vector + 1
        .endr

trap_entry:
        pushal
        push    %ds
        push    %es
        push    %fs
        push    %gs
        mov     $KERNEL_DS, %eax
        mov     %eax, %ds
        mov     %eax, %es
        cld
        push    %esp                    /* struct frame * */
        call    trap
        add     $4, %esp

        .globl  trap_return             /* a new process starts here, on a frame made by hand */
trap_return:
        pop     %gs
        pop     %fs
        pop     %es
        pop     %ds
        popal
        add     $8, %esp                /* vector and error code */
        VMI_INSN iret

        .section .note.GNU-stack, "", @progbits
