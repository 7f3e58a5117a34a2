/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bits of the machine (for assembly too) and the instructions that C has no word for. Every sensitive one goes through VMI_INSN, so the same source
 * builds the plain and the annotated kernel.
 */
#ifndef X86_H
#define X86_H

#include "vmi_guest.h"

#define CR0_MP 0x00000002
#define CR0_EM 0x00000004
#define CR0_TS 0x00000008
#define CR0_NE 0x00000020
#define CR0_WP 0x00010000
#define CR0_PG 0x80000000
#define CR4_PSE 0x00000010

#define FLAG_TF 0x00000100
#define FLAG_IF 0x00000200

#define PTE_P 0x001
#define PTE_W 0x002
#define PTE_U 0x004
#define PTE_A 0x020
#define PTE_D 0x040
#define PTE_PS 0x080
#define PAGE_SIZE 4096
#define LARGE_PAGE_SIZE 0x400000

#define PF_P 1                          /* error code of a page fault: protection violation, not absence */
#define PF_W 2
#define PF_U 4
#define PF_RSVD 8

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* Inline assembly that touches machine state must not move past memory accesses, hence "memory" everywhere. */
#define X86_ACTION(name, insn) \
        static inline void name(void) { asm volatile (VMI_INSN(insn) : : : "memory"); }
#define X86_READ(name, type, insn) \
        static inline type name(void) { type v; asm volatile (VMI_INSN(insn) : "=r" (v) : : "memory"); return v; }
#define X86_WRITE(name, type, insn) \
        static inline void name(type v) { asm volatile (VMI_INSN(insn) : : "r" (v) : "memory"); }
#define X86_LOAD(name, insn) \
        static inline void name(const void *p) { asm volatile (VMI_INSN(insn) : : "r" (p) : "memory"); }

X86_ACTION(cli, "cli")
X86_ACTION(sti, "sti")
X86_ACTION(clts, "clts")
X86_READ(read_cr0, u32, "mov %%cr0, %0")
X86_READ(read_cr2, u32, "mov %%cr2, %0")
X86_READ(read_cr3, u32, "mov %%cr3, %0")
X86_READ(read_cr4, u32, "mov %%cr4, %0")
X86_READ(read_dr6, u32, "mov %%db6, %0")
X86_WRITE(write_cr0, u32, "mov %0, %%cr0")
X86_WRITE(write_cr2, u32, "mov %0, %%cr2")
X86_WRITE(write_cr3, u32, "mov %0, %%cr3")
X86_WRITE(write_cr4, u32, "mov %0, %%cr4")
X86_WRITE(write_dr6, u32, "mov %0, %%db6")
X86_WRITE(ltr, u16, "ltr %w0")
X86_WRITE(lldt, u16, "lldt %w0")
X86_LOAD(lgdt, "lgdt (%0)")
X86_LOAD(lidt, "lidt (%0)")
X86_LOAD(sgdt, "sgdt (%0)")
X86_LOAD(sidt, "sidt (%0)")

/* Wait for an interrupt without losing one that came just before: sti takes effect after hlt has begun. */
static inline void sti_hlt(void)
{
        asm volatile (VMI_STI_HLT : : : "memory");
}

static inline void invlpg(const volatile void *p)
{
        asm volatile (VMI_INSN("invlpg %0") : : "m" (*(const volatile char *)p) : "memory");
}

static inline u32 read_eflags(void)
{
        u32 v;
        asm volatile (VMI_INSN("pushf") "\n\tpop %0" : "=r" (v) : : "memory");
        return v;
}

static inline void write_eflags(u32 v)
{
        asm volatile ("push %0\n\t" VMI_INSN("popf") : : "r" (v) : "memory", "cc");
}

/* Interrupts off, and back to whatever they were: the pair nests. */
static inline u32 irq_save(void)
{
        u32 flags = read_eflags();
        cli();
        return flags;
}

static inline void irq_restore(u32 flags)
{
        write_eflags(flags);
}

static inline u8 inb(u16 port)
{
        u8 v;
        asm volatile (VMI_INSN("inb %1, %0") : "=a" (v) : "Nd" (port) : "memory");
        return v;
}

static inline void outb(u16 port, u8 v)
{
        asm volatile (VMI_INSN("outb %0, %1") : : "a" (v), "Nd" (port) : "memory");
}

/* gcc may turn loops into calls of these even in a freestanding program. */
static inline void *memset(void *to, int byte, u32 bytes)
{
        void *d = to;
        asm volatile ("rep stosb" : "+D" (d), "+c" (bytes) : "a" (byte) : "memory");
        return to;
}

static inline void *memcpy(void *to, const void *from, u32 bytes)
{
        void *d = to;
        asm volatile ("rep movsb" : "+D" (d), "+S" (from), "+c" (bytes) : : "memory");
        return to;
}

#endif
#endif
