/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vmi_guest.h: mark the sensitive instructions of an i386 kernel.
 *
 * One file, to be copied into a kernel's tree (`vmi header` prints it). It serves C and assembly (GNU as, AT&T
 * syntax) and needs no change of a linker script. As a special permission, this file may be copied into a
 * kernel under any licence, with or without changes, and doesn't by itself bring that kernel under the GPL.
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
 * Stores of page-table entries look like any others, so only the kernel's source can tell where they are. They
 * need no mark to be right, since a hypervisor notices them anyhow; with one it need not be surprised each time.
 *
 *      VMI_ENTRY(insn)                 one instruction that stores (or changes) an entry of 4 bytes
 *      VMI_LONG_ENTRY(insn)            the same for an entry of 8 bytes (PAE), or for half of one
 *      VMI_SET_ENTRY(pointer, value)   C only: store a 32-bit entry; without VMI_ANNOTATE a plain assignment
 *
 * Bytes that must stay as they are, because the kernel compares, copies or rewrites them itself:
 *
 *      VMI_KEEP(text)                  C: any text of an asm statement
 *      VMI_KEEP_BEGIN, VMI_KEEP_END    assembly: around the instructions, in one section, not nested
 *
 * A slot inside such bytes is a contradiction, and the patcher refuses the kernel.
 *
 * What is worth marking: cli sti hlt pushf popf iret, mov to and from control and debug registers, clts, invlpg,
 * lgdt lidt lldt ltr, sgdt sidt sldt str, in out ins outs, cpuid rdmsr wrmsr rdtsc rdpmc wbinvd.
 *
 * The record, 8 bytes, little endian (the section is not loaded: it costs no memory):
 *      u32 start       virtual address of the slot
 *      u16 length      bytes of the slot: NOP, then the instruction up to start + length
 *      u8  version     1
 *      u8  kind        0 sensitive instruction, 1 page-table entry of 4 bytes, 2 of 8 bytes, 3 bytes to leave alone
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

#define VMI_KIND_INSN 0
#define VMI_KIND_ENTRY 1
#define VMI_KIND_LONG_ENTRY 2
#define VMI_KIND_KEEP 3

#ifdef __ASSEMBLER__

#ifdef VMI_ANNOTATE
/*
 * 7710 is the slot, 7711 the instruction, 7712 its end. The wanted padding n = 5 - (7712 - 7711) is known only
 * after the instruction: .skip may look ahead. In GNU as a true comparison is -1, hence the signs:
 * if n > 0, n - 1 prefixes and one 0x90.
 */
#define VMI_PAD_ (VMI_SLOT_BYTES - (7712f - 7711f))
.macro VMI_RECORD kind:req
7712:   .pushsection .vmi.annotations, "", @progbits
        .long   7710b
        .short  7712b - 7710b, VMI_ANNOTATION_VERSION + 256 * \kind
        .popsection
.endm
.macro VMI_SLOT kind:req, first:req, second
7710:   .skip   -(VMI_PAD_ > 0) * (VMI_PAD_ - 1), 0x66
        .skip   -(VMI_PAD_ > 0), 0x90
7711:   \first
        \second
        VMI_RECORD \kind
.endm
.macro VMI_INSN insn:vararg
        VMI_SLOT VMI_KIND_INSN, "\insn"
.endm
.macro VMI_ENTRY insn:vararg
        VMI_SLOT VMI_KIND_ENTRY, "\insn"
.endm
.macro VMI_LONG_ENTRY insn:vararg
        VMI_SLOT VMI_KIND_LONG_ENTRY, "\insn"
.endm
#define VMI_STI_HLT VMI_SLOT VMI_KIND_INSN, sti, hlt
#define VMI_KEEP_BEGIN 7710:
#define VMI_KEEP_END VMI_RECORD VMI_KIND_KEEP
#else
.macro VMI_INSN insn:vararg
        \insn
.endm
.macro VMI_ENTRY insn:vararg
        \insn
.endm
.macro VMI_LONG_ENTRY insn:vararg
        \insn
.endm
#define VMI_STI_HLT sti; hlt
#define VMI_KEEP_BEGIN
#define VMI_KEEP_END
#endif

#else /* C */

#ifdef VMI_ANNOTATE
#define VMI_PAD_ "(" VMI_STR(VMI_SLOT_BYTES) " - (7712f - 7711f))"
#define VMI_RECORD_(kind) \
        "7712: .pushsection .vmi.annotations, \"\", @progbits\n\t" \
        ".long 7710b\n\t" \
        ".short 7712b - 7710b, " VMI_STR(VMI_ANNOTATION_VERSION) " + 256 * " VMI_STR(kind) "\n\t" \
        ".popsection"
#define VMI_SLOT_(kind, insn) \
        "7710: .skip -(" VMI_PAD_ " > 0) * (" VMI_PAD_ " - 1), 0x66\n\t" \
        ".skip -(" VMI_PAD_ " > 0), 0x90\n" \
        "7711: " insn "\n" \
        VMI_RECORD_(kind)
#define VMI_INSN(insn) VMI_SLOT_(VMI_KIND_INSN, insn)
#define VMI_ENTRY(insn) VMI_SLOT_(VMI_KIND_ENTRY, insn)
#define VMI_LONG_ENTRY(insn) VMI_SLOT_(VMI_KIND_LONG_ENTRY, insn)
#define VMI_KEEP(text) "7710: " text "\n" VMI_RECORD_(VMI_KIND_KEEP)
#define VMI_SET_ENTRY(pointer, value) \
        do { \
                asm volatile (VMI_ENTRY("movl %1, %0") : "=m" (*(pointer)) : "ri" (value)); \
        } while (0)
#else
#define VMI_INSN(insn) insn
#define VMI_ENTRY(insn) insn
#define VMI_LONG_ENTRY(insn) insn
#define VMI_KEEP(text) text
#define VMI_SET_ENTRY(pointer, value) do { *(pointer) = (value); } while (0)
#endif
#define VMI_STI_HLT VMI_INSN("sti; hlt")

#endif

#endif /* VMI_GUEST_H */
