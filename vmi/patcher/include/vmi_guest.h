/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vmi_guest.h: mark the sensitive instructions of an i386 kernel.
 *
 * One file, to be copied into a kernel's tree. It serves C and assembly (GNU as, AT&T syntax).
 *
 *   VMI_ANNOTATE not defined   every macro gives the plain instruction: not a byte more.
 *   VMI_ANNOTATE defined       every macro gives the same instruction in a *slot*: at most one NOP
 *                              goes before it, so that NOP and instruction fill 5 bytes or more, and
 *                              the slot is recorded in the section .vmi.annotations.
 *
 * Why: a relative call takes 5 bytes and most sensitive instructions have 1 to 3. Without the slot
 * the patcher has to move neighbouring instructions away to gain room, and first has to prove that
 * nothing jumps between them. In an annotated kernel it finds the room and the proof in the file.
 *
 * In C, the macro wraps the instruction inside an asm statement; operands and clobbers stay as they were:
 *
 *      static inline void write_cr3(unsigned long pa)
 *      {
 *              asm volatile (VMI_INSN("mov %0, %%cr3") : : "r" (pa) : "memory");
 *      }
 *
 *      static inline void idle(void)           // the pair is one site: nothing may come in between
 *      {
 *              asm volatile (VMI_STI_HLT : : : "memory");
 *      }
 *
 * In assembly (a .S file, so that the preprocessor runs):
 *
 *      #include "vmi_guest.h"
 *      ret_from_trap:
 *              popal
 *              addl    $8, %esp
 *              VMI_INSN iret
 *
 * Rules for the user of the macros:
 *   - one instruction in each VMI_INSN (VMI_STI_HLT is the one pair);
 *   - no label inside, and no jump to anything but the start of the slot;
 *   - do not put a slot right after `mov ..., %ss` or `pop %ss`: those hold interrupts off for exactly one
 *     instruction, and that would be the NOP. `sti` needs no care, since its padding comes before it;
 *   - code that is copied elsewhere and run there (start-up code of other CPUs, for example) must stay plain:
 *     a record names one address.
 * Marking too much does no harm: the patcher leaves a slot alone if it has no use for the instruction.
 *
 * What is worth marking: cli sti hlt pushf popf iret, mov to and from control and debug registers, clts, invlpg,
 * lgdt lidt lldt ltr, sgdt sidt sldt str, in out ins outs, cpuid rdmsr wrmsr rdtsc rdpmc wbinvd.
 *
 * The record, 8 bytes, little endian (the section is not loaded: it costs no memory):
 *      u32 start       virtual address of the slot
 *      u16 length      bytes of the slot: NOP, then the instruction up to start + length
 *      u16 version     1
 *
 * The NOP is one instruction, 0x90 with 0x66 prefixes before it, since that works on every i386; the
 * dedicated long NOP (0F 1F) needs a Pentium Pro.
 */
#ifndef VMI_GUEST_H
#define VMI_GUEST_H

#define VMI_SLOT_BYTES 5                /* least length of a slot: a relative call */
#define VMI_ANNOTATION_VERSION 1

#define VMI_STR_(x) #x
#define VMI_STR(x) VMI_STR_(x)

#ifdef __ASSEMBLER__

#ifdef VMI_ANNOTATE
/*
 * 7710 is the slot, 7711 the instruction, 7712 its end. The wanted padding n = 5 - (7712 - 7711) is known only
 * after the instruction: .skip may look ahead. In GNU as a true comparison is -1, hence the signs:
 * if n > 0, n - 1 prefixes and one 0x90.
 */
#define VMI_PAD_ (VMI_SLOT_BYTES - (7712f - 7711f))
.macro VMI_SLOT first:req, second
7710:   .skip   -(VMI_PAD_ > 0) * (VMI_PAD_ - 1), 0x66
        .skip   -(VMI_PAD_ > 0), 0x90
7711:   \first
        \second
7712:   .pushsection .vmi.annotations, "", @progbits
        .long   7710b
        .short  7712b - 7710b, VMI_ANNOTATION_VERSION
        .popsection
.endm
.macro VMI_INSN insn:vararg
        VMI_SLOT "\insn"
.endm
#define VMI_STI_HLT VMI_SLOT sti, hlt
#else
.macro VMI_INSN insn:vararg
        \insn
.endm
#define VMI_STI_HLT sti; hlt
#endif

#else /* C */

#ifdef VMI_ANNOTATE
#define VMI_PAD_ "(" VMI_STR(VMI_SLOT_BYTES) " - (7712f - 7711f))"
#define VMI_INSN(insn) \
        "7710: .skip -(" VMI_PAD_ " > 0) * (" VMI_PAD_ " - 1), 0x66\n\t" \
        ".skip -(" VMI_PAD_ " > 0), 0x90\n" \
        "7711: " insn "\n" \
        "7712: .pushsection .vmi.annotations, \"\", @progbits\n\t" \
        ".long 7710b\n\t" \
        ".short 7712b - 7710b, " VMI_STR(VMI_ANNOTATION_VERSION) "\n\t" \
        ".popsection"
#else
#define VMI_INSN(insn) insn
#endif
#define VMI_STI_HLT VMI_INSN("sti; hlt")

#endif

#endif /* VMI_GUEST_H */
