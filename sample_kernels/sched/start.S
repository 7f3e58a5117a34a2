/* SPDX-License-Identifier: GPL-2.0-only */
/* The switch between kernel stacks, and the user program as the data it is to the kernel. */

        .text
/* void switch_stack(u32 *save, u32 load): only what a C function must preserve lies on the stack. */
        .globl  switch_stack
switch_stack:
        mov     4(%esp), %eax
        mov     8(%esp), %edx
        push    %ebp
        push    %ebx
        push    %esi
        push    %edi
        mov     %esp, (%eax)
        mov     %edx, %esp
        pop     %edi
        pop     %esi
        pop     %ebx
        pop     %ebp
        ret

        .section .user, "aw"
        .globl  program, program_end
        .p2align 12
program:
        .incbin "program.bin"
program_end:
        .p2align 12

        .section .note.GNU-stack, "", @progbits
