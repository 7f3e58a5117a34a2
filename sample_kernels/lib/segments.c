/* SPDX-License-Identifier: GPL-2.0-only */
/* One flat GDT for both rings, one TSS for the stack of ring 0, one IDT. */
#include "segments.h"

u64 gdt[GDT_ENTRIES] __attribute__((aligned(8)));
u64 idt[IDT_ENTRIES] __attribute__((aligned(8)));
struct tss tss;

static u64 descriptor(u32 base, u32 limit, u8 access, u8 flags)
{
        u32 low = (limit & 0xffff) | base << 16;
        u32 high = (base >> 16 & 0xff) | access << 8 | (limit & 0xf0000) | flags << 20 | (base & 0xff000000);
        return (u64)high << 32 | low;
}

u64 flat_segment(u8 access)
{
        return descriptor(0, 0xfffff, access, 0xc);
}

u64 system_segment(u8 access, const void *base, u32 bytes)
{
        return descriptor((u32)base, bytes - 1, access, 0);
}

u64 gate(u16 selector, void (*handler)(void), u8 access)
{
        u32 offset = (u32)handler;
        return (u64)((offset & 0xffff0000) | access << 8) << 32 | (u32)selector << 16 | (offset & 0xffff);
}

void segments_init(void)
{
        struct table_register r = { sizeof(gdt) - 1, (u32)gdt };

        gdt[KERNEL_CS / 8] = flat_segment(SEG_CODE);
        gdt[KERNEL_DS / 8] = flat_segment(SEG_DATA);
        gdt[USER_CS / 8] = flat_segment(SEG_CODE | 3 * SEG_DPL);
        gdt[USER_DS / 8] = flat_segment(SEG_DATA | 3 * SEG_DPL);
        gdt[TSS_SELECTOR / 8] = system_segment(SYS_TSS, &tss, sizeof(tss));
        tss.ss0 = KERNEL_DS;
        tss.iomap = sizeof(tss) << 16;  /* beyond the limit: no I/O permission bitmap */

        lgdt(&r);
        asm volatile ("ljmp %0, $1f\n1:" : : "i" (KERNEL_CS));
        asm volatile ("mov %0, %%ds\n\tmov %0, %%es\n\tmov %0, %%fs\n\tmov %0, %%gs\n\tmov %0, %%ss"
                      : : "r" (KERNEL_DS) : "memory");
        ltr(TSS_SELECTOR);
}

void idt_init(void)
{
        struct table_register r = { sizeof(idt) - 1, (u32)idt };

        for (int i = 0; i < IDT_ENTRIES; i++)
                idt[i] = gate(KERNEL_CS, vectors[i], GATE_INTERRUPT);
        lidt(&r);
}
