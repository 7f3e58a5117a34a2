/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interrupt flag, timer interrupts in ring 0 and ring 3, and what a kernel reads back about itself:
 * the instructions that work silently, but wrongly, when a kernel is moved out of ring 0. Paging stays off.
 */
#include "x86.h"
#include "check.h"
#include "segments.h"
#include "timer.h"
#include "trial.h"

#define LEAVE 0x80                      /* the way back from ring 3 */
#define ARITHMETIC_FLAGS 0xcd5          /* CF PF AF ZF SF DF OF */

void user_leave(void);
asm (".section .user, \"aw\"\nuser_leave: int $0x80\n.text");

static u8 trap_stack[PAGE_SIZE] __attribute__((aligned(16)));
static volatile int interrupts;
static struct frame interrupted;

void trap(struct frame *f)
{
        if (f->vector == IRQ_TIMER) {
                interrupted = *f;
                interrupts++;
                pic_eoi();
        } else {
                expect(f->vector == LEAVE, "no other trap");
                abandon();
        }
}

static void selectors(void)
{
        u32 cs, pushed, ss, access, fits = 0;

        asm volatile ("mov %%cs, %0\n\tpush %%cs\n\tpop %1\n\tmov %%ss, %2" : "=r" (cs), "=r" (pushed), "=r" (ss));
        expect(cs == KERNEL_CS && pushed == KERNEL_CS, "CS");
        expect(ss == KERNEL_DS, "SS");
        asm volatile ("lar %2, %0\n\tsetz %b1" : "=r" (access), "+q" (fits) : "r" (KERNEL_CS) : "cc");
        expect(fits && (access & 0xff00) == SEG_CODE << 8, "LAR of the kernel's code segment");
        verdict("CS and SS name ring 0");
}

static void tables(void)
{
        u16 task, local;
        struct table_register r;

        lldt(0);
        asm volatile (VMI_INSN("str %0") "\n\t" VMI_INSN("sldt %1") : "=r" (task), "=r" (local));
        expect(task == TSS_SELECTOR && local == 0, "STR, SLDT");
        sgdt(&r);
        expect(r.limit == sizeof(gdt) - 1 && r.base == (u32)gdt, "SGDT");
        sidt(&r);
        expect(r.limit == sizeof(idt) - 1 && r.base == (u32)idt, "SIDT");
        verdict("table registers read back");
}

static void interrupt_flag(void)
{
        u32 saved, got;

        expect(!(read_eflags() & FLAG_IF), "IF off at first");
        sti();
        expect(read_eflags() & FLAG_IF, "sti");
        saved = irq_save();
        expect(saved & FLAG_IF && !(read_eflags() & FLAG_IF), "pushf, cli");
        irq_restore(irq_save());
        expect(!(read_eflags() & FLAG_IF), "popf with IF off");
        irq_restore(saved);
        expect(read_eflags() & FLAG_IF, "popf with IF on");
        cli();
        asm volatile ("push %1\n\tpopf\n\tpushf\n\tpop %0\n\tcld"
                      : "=r" (got) : "r" (ARITHMETIC_FLAGS) : "cc", "memory");
        expect((got & (ARITHMETIC_FLAGS | FLAG_IF)) == ARITHMETIC_FLAGS, "arithmetic flags through popf and pushf");
        verdict("cli, sti, pushf, popf");
}

static void request_interrupt(void)
{
        interrupts = 0;
        timer_once(200);
        while (!pic_requested(0))
                ;
        expect(interrupts == 0, "held off while IF is 0");
}

static void expect_interrupt(u32 cs)
{
        expect(interrupts == 1, "taken once");
        expect(interrupted.vector == IRQ_TIMER && interrupted.cs == cs, "vector, CS");
        expect(interrupted.eflags & FLAG_IF, "EFLAGS.IF in the frame");
}

static void timer_interrupts(void)
{
        request_interrupt();
        asm volatile ("sti\n\tnop\n\tnop\n\tcli" : : : "memory");
        expect_interrupt(KERNEL_CS);
        verdict("interrupt held off by cli, taken after sti");

        request_interrupt();
        write_eflags(FLAG_IF | 2);
        asm volatile ("nop\n\tcli" : : : "memory");
        expect_interrupt(KERNEL_CS);
        verdict("interrupt taken after popf");

        request_interrupt();
        trial_user(user_leave, 0, FLAG_IF | 2);
        expect_interrupt(USER_CS);
        expect(interrupted.eip == (u32)user_leave, "before the first instruction of ring 3");
        verdict("interrupt taken after iret to ring 3");

        request_interrupt();
        sti_hlt();
        cli();
        expect_interrupt(KERNEL_CS);
        interrupts = 0;
        timer_once(1000);
        sti_hlt();
        cli();
        expect_interrupt(KERNEL_CS);
        verdict("sti; hlt woken by a waiting interrupt and by a later one");
}

void kmain(void)
{
        console_init();
        segments_init();
        tss.esp0 = (u32)(trap_stack + sizeof(trap_stack));
        idt_init();
        idt[LEAVE] = gate(KERNEL_CS, vectors[LEAVE], GATE_INTERRUPT | GATE_USER);
        pic_init(1 << 0);
        selectors();
        tables();
        interrupt_flag();
        timer_interrupts();
        finish("interrupts");
}
