/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A kernel that tries what it should not: thousands of segment loads, far transfers, returns and interrupts
 * drawn by lot, in ring 0 and in ring 3.
 *
 * Whatever runs this kernel must refuse the same of them, with the same exceptions, and let it go on. Each line
 * has a checksum over what came of the attempts; it was the same on every machine they were made on.
 */
#include "x86.h"
#include "attempts.h"
#include "check.h"
#include "segments.h"
#include "timer.h"
#include "trial.h"

#define TRIES 3000

enum { DATA3 = FIRST_FREE_SELECTOR, ABSENT = 0x38, ONLY_CODE = 0x40, LDT = 0x48, READ_ONLY = 0x50, DATA1 = 0x58, CODE1 = 0x60 };
enum { CONFORMING = 0x68, TSS2 = 0x70 };

static u8 trap_stack[PAGE_SIZE] __attribute__((aligned(16)));
static u64 ldt[2];
static u32 lot = 1, sum, refused;

static u32 draw(void)
{
        lot ^= lot << 13;
        lot ^= lot >> 17;
        lot ^= lot << 5;
        return lot;
}

/* Mostly of something that is there. Privilege 1 is left out: who runs a kernel there can't tell it from 0. */
static u32 selector(void)
{
        u32 n = draw();

        n = n & 0x300 ? n & 0x7f : n >> 16;
        return (n & 3) == 1 ? n ^ 1 : n;
}

/* Not the null selector: emulators take it, and end when they need the task. */
static u32 task(void)
{
        u32 n = selector();

        return n & 0xfffc ? n : n | KERNEL_CS;
}

static void note(u32 what)
{
        sum = (sum << 5 | sum >> 27) ^ what;
}

void trap(struct frame *f)
{
        if (f->vector == LEAVE) {
                note(f->cs);
                note(f->eflags & FLAG_IF);
        } else {
                refused++;
                note(f->vector << 16 | f->error);
                note(f->cs);
        }
        abandon();
}

static void report(const char *what)
{
        printf("%s: %u refused, checksum %08x\n", what, refused, sum);
        sum = refused = 0;
}

static void many(const char *what, void (*entry)(void), u32 (*argument)(void), u32 tries)
{
        for (u32 i = 0; i < tries; i++) {
                other = draw();
                result = 0;
                trial(entry, argument());
                note(result);
        }
        report(what);
}

static void interrupts(void)
{
        for (u32 i = 0; i < 256; i++) {
                int_number = (u8)i;
                trial(try_int, 0);
        }
        report("int, ring 0");
        for (u32 i = 0; i < 256; i++) {
                user_int_number = (u8)i;
                trial_user(try_user_int, 0, 2 | FLAG_IF);
        }
        report("int, ring 3");
        for (u32 i = 0; i < 16; i++)
                trial_user(try_user_sensitive, i, 2 | FLAG_IF);
        report("privileged, ring 3");
}

static void descriptors(void)
{
        const struct table_register all = { sizeof(gdt) - 1, (u32)gdt };

        segments_init();
        pic_init(0);
        gdt[DATA3 / 8] = flat_segment(SEG_DATA | 3 * SEG_DPL);
        gdt[ABSENT / 8] = flat_segment(SEG_DATA & ~SEG_PRESENT);
        gdt[ONLY_CODE / 8] = flat_segment(SEG_CODE_ONLY);
        gdt[LDT / 8] = system_segment(SYS_LDT, ldt, sizeof(ldt));
        gdt[READ_ONLY / 8] = flat_segment(SEG_DATA & ~2);
        gdt[DATA1 / 8] = flat_segment(SEG_DATA | 2 * SEG_DPL);
        gdt[CODE1 / 8] = flat_segment(SEG_CODE | 2 * SEG_DPL);
        gdt[CONFORMING / 8] = flat_segment(SEG_CODE | 4);
        gdt[TSS2 / 8] = system_segment(SYS_TSS & ~SEG_PRESENT, &tss, sizeof(tss));
        ldt[0] = flat_segment(SEG_DATA | 3 * SEG_DPL);
        tss.esp0 = (u32)(trap_stack + sizeof(trap_stack));
        lgdt(&all);                     /* once more: who runs this kernel may look at a table when it is loaded */
        idt_init();
        idt[LEAVE] |= (u64)GATE_USER << 40;
}

void kmain(void)
{
        console_init();
        descriptors();
        many("ltr", try_ltr, task, TRIES);
        many("lldt", try_lldt, selector, TRIES);
        many("mov ds", try_ds, selector, TRIES);
        many("mov ss", try_ss, selector, TRIES);
        many("lss", try_lss, selector, TRIES);
        many("lar", try_lar, selector, TRIES);
        many("lsl", try_lsl, selector, TRIES);
        many("verr", try_verr, selector, TRIES);
        many("verw", try_verw, selector, TRIES);
        many("far call", try_call, selector, TRIES);
        many("far jump", try_jump, selector, TRIES);
        many("far return", try_return, selector, TRIES);
        many("iret", try_iret, selector, TRIES);
        many("popf", try_popf, draw, TRIES);
        interrupts();
        verdict("still here");
        finish("hostile");
}
