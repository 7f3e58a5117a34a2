/* SPDX-License-Identifier: GPL-2.0-only */
#include "segments.h"
#include "vmi_guest.h"

        .text
        .globl  trial, trial_user, abandon
trial:
        call    enter
        call    *8(%ebp)
abandon:                                /* whatever is on the stack above trial_stack is given up */
        mov     trial_stack, %esp
        popal
        ret

trial_user:
        call    enter
        push    $USER_DS
        push    $user_stack_top
        push    16(%ebp)
        push    $USER_CS
        push    8(%ebp)
        mov     $USER_DS, %edx
        mov     %edx, %ds
        mov     %edx, %es
        VMI_INSN iret

enter:  pop     %edx
        pushal
        mov     %esp, trial_stack
        lea     28(%esp), %ebp          /* 4(%ebp): return address, 8(%ebp): first parameter */
        mov     12(%ebp), %eax
        jmp     *%edx

        .bss
        .p2align 2
trial_stack:
        .skip   4
        .globl  user_stack, user_stack_top
        .p2align 12
user_stack:
        .skip   4096
user_stack_top:

        .section .note.GNU-stack, "", @progbits
