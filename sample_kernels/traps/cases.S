/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One line per case: the ring it runs in, the vector and error code to expect, flags, the argument (loaded
 * into EAX), the instruction. FAULT expects the pushed EIP at the instruction, TRAP after it.
 * A longer case opens with CASE, marks the expected EIP by the label 9, and closes with END.
 *
 * Cases of ring 3 lie in .user: to the kernel they are data, as user programs are.
 */
#include "traps.h"

.macro CASE ring:req, vector:req, error:req, flags:req, argument:req, what:vararg
        .section .rodata
6:      .asciz  "\what"
        .section .rodata.cases, "a"
        .long   6b, 8f, 9f, \argument, \error
        .byte   \ring, \vector
        .short  \flags
        .if     \ring
        .section .user, "aw"
        .else
        .text
        .endif
8:
.endm

.macro END ring
        .if     \ring
        int     $LEAVE
        .else
        ret
        .endif
.endm

.macro FAULT ring, vector, error, flags, argument, insn:vararg
        CASE    \ring, \vector, \error, \flags, \argument, \insn
9:      \insn
        END     \ring
.endm

.macro TRAP ring, vector, error, flags, argument, insn:vararg
        CASE    \ring, \vector, \error, \flags, \argument, \insn
        \insn
9:      END     \ring
.endm

/* iret in ring 0, to a code segment it must refuse. */
.macro BAD_IRET vector, selector, what:vararg
        CASE    0, \vector, \selector, ANY_EIP, 0, \what
        push    $2
        push    $\selector
        push    $9f
        iret
9:      ret
.endm

        .section .rodata.cases, "a"
        .p2align 2
cases:

/* #DE, #DB */
        FAULT   0, DE, NONE, 0, 0, div %al
        FAULT   3, DE, NONE, 0, 0, div %al
        FAULT   3, DE, NONE, 0, 0x7fff, idiv %ah

        CASE    0, DB, NONE, RESUME, 0, single step
        pushf
        orl     $FLAG_TF, (%esp)
        push    $KERNEL_CS
        push    $1f
        iret
        .skip   8, 0x90
1:      inc     %eax
9:      ret
        CASE    3, DB, NONE, RESUME | STEP, 0, single step
        inc     %eax
9:      END     3

/* #BP, #OF, #BR, #UD */
        TRAP    0, BP, NONE, RESUME, 0, int3
        TRAP    3, BP, NONE, RESUME, 0, int3
        TRAP    0, BP, NONE, RESUME | NEST, 0, int3
        CASE    0, OF, NONE, RESUME, 0x7fffffff, into with overflow
        inc     %eax
        into
9:      END     0
        CASE    3, OF, NONE, RESUME, 0x7fffffff, into with overflow
        inc     %eax
        into
9:      END     3
        CASE    0, NOTHING, NONE, 0, 0, into without overflow
        inc     %eax
        into
9:      END     0
        FAULT   0, BR, NONE, 0, 4, bound %eax, bounds
        FAULT   3, BR, NONE, 0, -1, bound %eax, bounds
        FAULT   3, NOTHING, NONE, 0, 3, bound %eax, bounds
        FAULT   0, UD, NONE, 0, 0, ud2
        FAULT   3, UD, NONE, 0, 0, ud2

/* #NM: the handler clears TS or EM and the instruction runs */
        FAULT   0, NM, NONE, RESUME | WITH_TS, 0, fninit
        FAULT   3, NM, NONE, RESUME | WITH_TS, 0, fninit
        FAULT   3, NM, NONE, RESUME | WITH_TS, 0, fwait
        FAULT   0, NM, NONE, RESUME | WITH_EM, 0, fninit
        FAULT   3, NM, NONE, RESUME | WITH_EM, 0, fninit

/* #DF: the gate that delivery needs is missing, and one fault follows another */
        FAULT   0, DF, 0, ANY_EIP | HIDE_DE, 0, div %al
        FAULT   3, DF, 0, ANY_EIP | HIDE_DE, 0, div %al
        FAULT   0, DF, 0, ANY_EIP | HIDE_PF, HOLE, mov (%eax), %al
        FAULT   3, DF, 0, ANY_EIP | HIDE_PF, HOLE, mov (%eax), %al
        FAULT   0, DF, 0, ANY_EIP | HIDE_GP, BEYOND_GDT, mov %eax, %ds
        FAULT   3, DF, 0, ANY_EIP | HIDE_NP, 0, int $ABSENT_GATE
/* ... but #UD is benign: the second fault is delivered by itself */
        FAULT   0, NP, GATE_ERROR(UD), HIDE_UD, 0, ud2

/* #TS, #NP, #SS */
        FAULT   3, TS, KERNEL_DS, 0, 0, int $RING2_GATE
        FAULT   0, NP, ABSENT_DATA, 0, ABSENT_DATA, mov %eax, %ds
        FAULT   0, NP, ABSENT_DATA3, 0, ABSENT_DATA3 | 3, mov %eax, %es
        FAULT   3, NP, ABSENT_DATA3, 0, ABSENT_DATA3 | 3, mov %eax, %gs
        FAULT   3, NP, LDT_ABSENT, 0, LDT_ABSENT | 3, mov %eax, %fs
        FAULT   0, NP, GATE_ERROR(ABSENT_GATE), 0, 0, int $ABSENT_GATE
        FAULT   3, NP, GATE_ERROR(ABSENT_GATE), 0, 0, int $ABSENT_GATE
        FAULT   3, NP, ABSENT_CODE, 0, 0, int $ABSENT_CODE_GATE
        FAULT   3, NP, ABSENT_CALL_GATE, 0, 0, lcall $ABSENT_CALL_GATE + 3, $0
        FAULT   0, NP, ABSENT_LDT, ANY_EIP, ABSENT_LDT, lldt %ax
        BAD_IRET NP, ABSENT_CODE, iret to absent code
        FAULT   0, SS, ABSENT_DATA, 0, ABSENT_DATA, mov %eax, %ss
        FAULT   3, SS, ABSENT_DATA3, 0, ABSENT_DATA3 | 3, mov %eax, %ss

/* #GP with a selector */
        FAULT   0, GP, BEYOND_GDT, 0, BEYOND_GDT, mov %eax, %ds
        FAULT   0, GP, BEYOND_LDT, 0, BEYOND_LDT, mov %eax, %es
        FAULT   0, GP, ONLY_CODE, 0, ONLY_CODE, mov %eax, %fs
        FAULT   0, GP, KERNEL_DS, 0, KERNEL_DS | 3, mov %eax, %ss
        FAULT   0, GP, KERNEL_DS, 0, 0, ljmp $KERNEL_DS, $0
        FAULT   0, GP, KERNEL_DS, 0, 0, int $DATA_GATE
        FAULT   0, GP, KERNEL_DS, ANY_EIP, KERNEL_DS, ltr %ax
        FAULT   0, GP, GATE_ERROR(BEYOND_IDT), 0, 0, int $BEYOND_IDT
        FAULT   3, GP, GATE_ERROR(BEYOND_IDT), 0, 0, int $BEYOND_IDT
        FAULT   3, GP, GATE_ERROR(KERNEL_ONLY), 0, 0, int $KERNEL_ONLY
        FAULT   3, GP, GATE_ERROR(PF), 0, 0, int $PF
        FAULT   3, GP, KERNEL_DS, 0, KERNEL_DS, mov %eax, %ds
        FAULT   3, GP, 0x18, 0, USER_CS, mov %eax, %ss
        FAULT   3, GP, KERNEL_CS, 0, 0, ljmp $KERNEL_CS, $0
        FAULT   3, GP, KERNEL_CALL_GATE, 0, 0, lcall $KERNEL_CALL_GATE + 3, $0
        BAD_IRET GP, KERNEL_DS, iret to a data segment
        BAD_IRET GP, 0x18, iret to ring 3 by a selector of ring 0

/* #GP(0) */
        FAULT   0, GP, 0, 0, 0, mov %eax, %ss
        BAD_IRET GP, 0, iret to the null segment
        FAULT   0, GP, 0, 0, 0, int $NULL_GATE
        FAULT   3, GP, 0, 0, 0, cli
        FAULT   3, GP, 0, 0, 0, sti
        FAULT   3, GP, 0, 0, 0, hlt
        FAULT   3, GP, 0, 0, 0, mov %cr0, %eax
        FAULT   3, GP, 0, 0, 0, mov %eax, %cr3
        FAULT   3, GP, 0, 0, 0, mov %eax, %dr7
        FAULT   3, GP, 0, 0, 0, clts
        FAULT   3, GP, 0, 0, HOLE, invlpg (%eax)
        FAULT   3, GP, 0, 0, bounds, lgdt (%eax)
        FAULT   3, GP, 0, 0, bounds, lidt (%eax)
        FAULT   3, GP, 0, 0, 0, lldt %ax
        FAULT   3, GP, 0, 0, TSS_SELECTOR, ltr %ax
        FAULT   3, GP, 0, 0, 0, lmsw %ax
        FAULT   3, GP, 0, 0, 0, wbinvd
        FAULT   3, GP, 0, 0, 0, rdmsr

/* #PF: absent or forbidden, read or write or fetch, kernel or user */
        FAULT   0, PF, 0, 0, HOLE + 1, mov (%eax), %dl
        FAULT   0, PF, PF_W, 0, HOLE + 2, mov %dl, (%eax)
        FAULT   0, PF, PF_P | PF_W, 0, READ_ONLY + 3, mov %dl, (%eax)
        FAULT   0, PF, 0, EIP_ARG, HOLE, call *%eax
        FAULT   3, PF, PF_U, 0, HOLE + 4, mov (%eax), %dl
        FAULT   3, PF, PF_U | PF_W, 0, HOLE + 5, mov %dl, (%eax)
        FAULT   3, PF, PF_U | PF_P, 0, KERNEL_PAGE + 6, mov (%eax), %dl
        FAULT   3, PF, PF_U | PF_P | PF_W, 0, KERNEL_PAGE + 7, mov %dl, (%eax)
        FAULT   3, PF, PF_U | PF_P | PF_W, 0, READ_ONLY + 8, mov %dl, (%eax)
        FAULT   3, PF, PF_U, EIP_ARG, HOLE, call *%eax
        FAULT   3, PF, PF_U | PF_P, EIP_ARG, KERNEL_PAGE, call *%eax
        FAULT   0, NOTHING, 0, 0, READ_ONLY, mov (%eax), %dl
        FAULT   3, NOTHING, 0, 0, READ_ONLY, mov (%eax), %dl
        FAULT   0, PF, PF_W, RESUME, ON_DEMAND, mov %edx, (%eax)
        FAULT   3, PF, PF_U, RESUME, ON_DEMAND, mov (%eax), %edx

/* #MF, with CR0.NE: at the next instruction that waits for the x87 */
        FAULT   0, MF, NONE, WITH_MF, 0, fwait
        FAULT   3, MF, NONE, WITH_MF, 0, fwait

/* software interrupts, and what ring 3 may do without a trap */
        TRAP    0, SYSCALL, NONE, RESUME, 0, int $SYSCALL
        TRAP    3, SYSCALL, NONE, RESUME, 0, int $SYSCALL
        TRAP    0, TRAP_GATE, NONE, RESUME, 0, int $TRAP_GATE
        TRAP    3, TRAP_GATE, NONE, RESUME, 0, int $TRAP_GATE
        TRAP    0, KERNEL_ONLY, NONE, RESUME, 0, int $KERNEL_ONLY
        CASE    3, NOTHING, NONE, 0, 2, popf can not clear IF
        push    %eax
        popf
9:      END     3
        FAULT   3, NOTHING, NONE, 0, LDT_DATA | 3, mov %eax, %es
/*
 * Left out: #AC (17), since the usual emulators never raise it; #XM (19), since an i686 need not have SSE;
 * segment limits and I/O permission of ring 3, which emulators do not check either; task gates.
 */
        .section .rodata.cases, "a"
        .globl  cases, cases_end
cases_end:

        .section .user, "aw"
        .p2align 2
bounds: .long   0, 3

        .section .note.GNU-stack, "", @progbits
