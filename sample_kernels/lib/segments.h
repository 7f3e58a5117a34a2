/* SPDX-License-Identifier: GPL-2.0-only */
/* Segments, gates and the trap frame; usable from assembly for the selectors. */
#ifndef SEGMENTS_H
#define SEGMENTS_H

#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define USER_CS 0x1b                    /* privilege 3 in the low bits */
#define USER_DS 0x23
#define TSS_SELECTOR 0x28
#define FIRST_FREE_SELECTOR 0x30        /* for the kernel's own descriptors */

#define GDT_ENTRIES 16
#define IDT_ENTRIES 0x90                /* shorter than 256, so that a vector can lie beyond the limit */

#ifndef __ASSEMBLER__
#include "x86.h"

struct frame {                          /* what vectors.S leaves on the stack, lowest address first */
        u32 gs, fs, es, ds;
        u32 edi, esi, ebp, unused_esp, ebx, edx, ecx, eax;
        u32 vector;
        u32 error;                      /* 0 where the processor pushes none */
        u32 eip, cs, eflags;
        u32 esp, ss;                    /* only if the trap came from ring 3 */
};

struct table_register {
        u16 limit;
        u32 base;
} __attribute__((packed));

struct tss {
        u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags;
        u32 eax, ecx, edx, ebx, esp, ebp, esi, edi;
        u32 es, cs, ss, ds, fs, gs, ldt, iomap;
};

enum { GATE_INTERRUPT = 0x8e, GATE_TRAP = 0x8f, GATE_USER = 0x60, GATE_PRESENT = 0x80 };
enum { SEG_CODE = 0x9b, SEG_CODE_ONLY = 0x99, SEG_DATA = 0x93, SEG_DPL = 0x20, SEG_PRESENT = 0x80 };
enum { SYS_LDT = 0x82, SYS_TSS = 0x89, SYS_CALL_GATE = 0x8c };

extern u64 gdt[GDT_ENTRIES], idt[IDT_ENTRIES];
extern struct tss tss;
extern void (*const vectors[IDT_ENTRIES])(void);

u64 flat_segment(u8 access);                            /* base 0, limit 4 GiB */
u64 system_segment(u8 access, const void *base, u32 bytes);
u64 gate(u16 selector, void (*handler)(void), u8 access);

void segments_init(void);               /* own GDT and TSS; the TSS has ss0 but no esp0 yet */
void idt_init(void);                    /* every vector to trap(), interrupt gates for ring 0 only */

void trap(struct frame *f);             /* the kernel's own */
#endif
#endif
