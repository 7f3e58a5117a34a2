/* SPDX-License-Identifier: GPL-2.0-only */
#include "segments.h"
#include "attempts.h"
#include "vmi_guest.h"

        .text
        .globl  try_ltr, try_lldt, try_ds, try_ss, try_lss, try_lar, try_lsl, try_verr, try_verw
        .globl  try_call, try_jump, try_return, try_iret, try_popf
try_ltr:
        VMI_INSN ltr %ax
        ret

try_lldt:
        VMI_INSN lldt %ax
        ret

try_ds: push    %ds
        mov     %eax, %ds
        VMI_INSN pop %ds
        ret

try_ss: mov     $KERNEL_DS, %ecx
        VMI_INSN mov %eax, %ss
        VMI_INSN mov %ecx, %ss
        ret

try_lss:
        mov     %esp, pointer
        mov     %ax, pointer + 4
        mov     $KERNEL_DS, %ecx
        VMI_INSN lss pointer, %esp
        VMI_INSN mov %ecx, %ss
        ret

try_lar:
        xor     %ecx, %ecx
        VMI_INSN lar %eax, %ecx
        jmp     found

try_lsl:
        xor     %ecx, %ecx
        VMI_INSN lsl %eax, %ecx
found:  setz    %al
        movzx   %al, %eax
        lea     (%ecx, %eax, 2), %eax
        mov     %eax, result
        ret

try_verr:
        xor     %ecx, %ecx
        VMI_INSN verr %ax
        jmp     found

try_verw:
        xor     %ecx, %ecx
        VMI_INSN verw %ax
        jmp     found

try_call:
        movl    $far, pointer
        mov     %ax, pointer + 4
        VMI_INSN lcall *pointer
        ret
far:    mov     (%esp), %ecx            /* CS of the caller is above its EIP */
        mov     4(%esp), %ecx
        mov     %ecx, result
        VMI_INSN lret

try_jump:
        movl    $near, pointer
        mov     %ax, pointer + 4
        VMI_INSN ljmp *pointer
near:   ret

try_return:
        push    other
        push    %esp
        push    %eax
        push    $landing
        VMI_INSN lret

try_iret:
        movzwl  other, %ecx
        push    %ecx
        push    $user_stack_top
        movzwl  other + 2, %ecx
        and     $0x0ed5, %ecx           /* neither TF nor NT, nor the right to ports */
        or      $2, %ecx
        push    %ecx
        push    %eax
        push    $landing
        VMI_INSN iret

try_popf:
        and     $0x240ed5, %eax
        push    %eax
        VMI_INSN popf
        VMI_INSN pushf
        pop     %ecx
        push    $2
        VMI_INSN popf
        and     $0x240ed5, %ecx
        mov     %ecx, result
        ret

        .section .user, "aw"
        .globl  try_int, try_user_int, try_user_sensitive, int_number, user_int_number
landing:
        mov     %cs, %eax
        int     $LEAVE

try_int:
        .byte   0xcd
int_number:
        .byte   0
        ret

try_user_int:
        .byte   0xcd
user_int_number:
        .byte   0
        int     $LEAVE

try_user_sensitive:                     /* by number in EAX; the last two are not refused, and tell nothing new */
        jmp     *table(, %eax, 4)
        .p2align 2
table:  .long   u0, u1, u2, u3, u4, u5, u6, u7, u8, u9, u10, u11, u12, u13, u14, u15
u0:     cli
        int     $LEAVE
u1:     sti
        int     $LEAVE
u2:     hlt
        int     $LEAVE
u3:     mov     %cr0, %eax
        int     $LEAVE
u4:     mov     %eax, %cr3
        int     $LEAVE
u5:     lgdt    pointer
        int     $LEAVE
u6:     lidt    pointer
        int     $LEAVE
u7:     ltr     %ax
        int     $LEAVE
u8:     lldt    %ax
        int     $LEAVE
u9:     clts
        int     $LEAVE
u10:    invlpg  pointer
        int     $LEAVE
u11:    wbinvd
        int     $LEAVE
u12:    in      $0x21, %al
        int     $LEAVE
u13:    out     %al, $0x80
        int     $LEAVE
u14:    rdmsr
        int     $LEAVE
u15:    wrmsr
        int     $LEAVE

        .bss
        .globl  result, other
        .p2align 2
result: .skip   4
other:  .skip   4
pointer:
        .skip   8

        .section .note.GNU-stack, "", @progbits
