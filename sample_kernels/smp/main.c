/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Several processors: started by INIT and start-up messages, counting together, taking turns at a lock, interrupting each other,
 * and told of a changed page. Nothing here depends on how many there are: a single one, even without an APIC, says the same.
 */
#include "x86.h"
#include "check.h"
#include "mptable.h"
#include "segments.h"
#include "smp.h"

enum { EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ICR_LOW = 0x300, ICR_HIGH = 0x310 };
enum { LOGICAL = 0x800, ASSERT = 0x4000, LEVEL = 0x8000, TO_SELF = 1 << 18, TO_OTHERS = 3 << 18 };
enum { INIT = 5 << 8, STARTUP = 6 << 8 };
enum { CALL = 0x40, WAKE = 0x41, FLUSH = 0x42, SPURIOUS = 0x8f };
enum { ADDITIONS = 20000, TURNS = 300, CALLS = 20 };
enum { STARTED = 1, COUNT, LOCK, INTERRUPTS, PAGE, OVER };      /* what all do now: stage */

extern char startup_code[], startup_end[];
char stacks[MOST_PROCESSORS << STACK_SHIFT] __attribute__((aligned(16)));

static u32 page_directory[1024] __attribute__((aligned(PAGE_SIZE)));
static u32 low_pages[1024] __attribute__((aligned(PAGE_SIZE))), apic_pages[1024] __attribute__((aligned(PAGE_SIZE)));
static u32 frames[2][1024] __attribute__((aligned(PAGE_SIZE)));
static u32 *const window = (u32 *)0x300000;     /* a page of the first 4 MiB, mapped here or there */

static volatile u32 present = 1;        /* processors, bit n: APIC ID n */
static volatile u32 stage, ready, done; /* all but stage: bit n, or a count of processors */
static volatile u32 total, unlocked, last_turn, unfair;
static volatile u32 next_ticket, served_ticket;
static volatile u32 calls[MOST_PROCESSORS], wakes[MOST_PROCESSORS], flushes[MOST_PROCESSORS], seen[MOST_PROCESSORS];
static int have_apic;

static volatile u32 *lapic(u32 offset)
{
        return (volatile u32 *)(LAPIC + offset);
}

static u32 self(void)
{
        return have_apic ? *lapic(LAPIC_ID) >> 24 : 0;
}

static void relax(void)
{
        asm volatile ("pause" : : : "memory");
}

static u32 fetch_add(volatile u32 *to, u32 value)
{
        asm volatile ("lock xadd %0, %1" : "+r" (value), "+m" (*to) : : "memory", "cc");
        return value;
}

static void set_bit(volatile u32 *to, u32 bit)
{
        asm volatile ("lock bts %1, %0" : "+m" (*to) : "r" (bit) : "memory", "cc");
}

static void send(u32 destination, u32 command)
{
        *lapic(ICR_HIGH) = destination << 24;
        *lapic(ICR_LOW) = command;
}

void trap(struct frame *f)
{
        u32 me = self();

        if (f->vector == CALL)
                calls[me]++;
        else if (f->vector == WAKE)
                wakes[me]++;
        else if (f->vector == FLUSH) {
                invlpg(window);
                fetch_add(&flushes[me], 1);
        } else
                expect(0, "no other trap");
        if (have_apic)
                *lapic(EOI) = 0;
}

/* ---- what every processor does ---- */

static void count_together(void)
{
        for (int i = 0; i < ADDITIONS; i++) {
                asm volatile ("lock incl %0" : "+m" (total) : : "cc");
                fetch_add(&total, 2);
        }
}

static void take_turns(void)
{
        for (int i = 0; i < TURNS; i++) {
                u32 ticket = fetch_add(&next_ticket, 1);
                while (served_ticket != ticket)
                        relax();
                if (ticket && last_turn != ticket - 1)
                        unfair++;
                last_turn = ticket;
                unlocked++;             /* not atomic: the lock has to do */
                served_ticket = ticket + 1;
        }
}

static void look_at_page(u32 me)
{
        seen[me] = *(volatile u32 *)window;
        set_bit(&ready, me);
        while (!flushes[me])
                relax();
        seen[me] = *(volatile u32 *)window;
}

static void use_lapic(u32 me)
{
        *lapic(DFR) = 0xffffffff;
        *lapic(LDR) = 1u << (24 + me);
        *lapic(SVR) = 0x100 | SPURIOUS;
}

static void use_paging(void)
{
        write_cr3((u32)page_directory);
        write_cr0(read_cr0() | CR0_PG);
}

static void await(u32 wanted)
{
        while (stage != wanted)
                relax();
}

void processor_main(u32 me) __attribute__((noreturn));
void processor_main(u32 me)
{
        struct table_register g = { sizeof(gdt) - 1, (u32)gdt }, i = { sizeof(idt) - 1, (u32)idt };

        lgdt(&g);
        lidt(&i);
        use_paging();
        use_lapic(me);
        set_bit(&present, me);
        await(COUNT);
        count_together();
        fetch_add(&done, 1);
        await(LOCK);
        take_turns();
        fetch_add(&done, 1);
        await(INTERRUPTS);
        set_bit(&ready, me);
        while (wakes[me] < CALLS) {     /* asleep between them */
                sti_hlt();
                cli();
        }
        sti();
        fetch_add(&done, 1);
        await(PAGE);
        look_at_page(me);
        fetch_add(&done, 1);
        await(OVER);
        cli();
        for (;;)
                asm volatile (VMI_INSN("hlt"));
}

/* ---- what the boot processor does besides ---- */

static void wait_some(void)
{
        for (int i = 0; i < 20000; i++)
                inb(0x61);
}

static void start_others(u32 expected)
{
        if (have_apic) {
                memcpy((void *)STARTUP_PAGE, startup_code, startup_end - startup_code);
                use_lapic(self());
                if (expected & ~present) {
                        send(0, TO_OTHERS | INIT | LEVEL | ASSERT);
                        send(0, TO_OTHERS | INIT | LEVEL);
                        wait_some();
                        send(0, TO_OTHERS | STARTUP | ASSERT | STARTUP_PAGE >> 12);
                        while (present != expected)
                                relax();
                        send(0, TO_OTHERS | STARTUP | ASSERT | STARTUP_PAGE >> 12);     /* they run: no effect */
                }
        }
        expect(present == (expected ? expected : 1), "all of the tables, no other");
        verdict("every processor of the tables has started");
}

static u32 others(void)
{
        u32 count = 0;
        for (u32 bits = present; bits; bits &= bits - 1)
                count++;
        return count - 1;
}

static void begin(u32 what)
{
        done = ready = 0;
        stage = what;
}

static void await_done(void)
{
        while (done != others())
                relax();
}

static void await_ready(void)
{
        while ((ready | 1u << self()) != present)
                relax();
}

static void counting(void)
{
        begin(COUNT);
        count_together();
        await_done();
        expect(total == (others() + 1) * ADDITIONS * 3, "lock inc, lock xadd");
        verdict("locked additions of all processors are all there");

        begin(LOCK);
        take_turns();
        await_done();
        expect(unlocked == (others() + 1) * TURNS && !unfair, "one at a time, in the order of their tickets");
        verdict("a ticket lock keeps order");
}

/* One message to each of the others, by its own name and by that of its set, and at last to all at once. */
static void interrupts(void)
{
        u32 me = self();

        begin(INTERRUPTS);
        await_ready();
        for (int n = 0; n < CALLS; n++)
                for (u32 to = 0; to < MOST_PROCESSORS; to++) {
                        if (to == me || !(present >> to & 1))
                                continue;
                        send(n & 1 ? 1u << to : to, ASSERT | (n & 1 ? LOGICAL : 0) | CALL);
                        while (calls[to] != n + 1u)
                                relax();
                        send(to, ASSERT | WAKE);
                        while (wakes[to] != n + 1u)
                                relax();
                }
        await_done();
        verdict("each message wakes the processor it is for");

        if (have_apic) {
                send(0, TO_SELF | ASSERT | CALL);
                asm volatile ("sti\n\tnop\n\tcli" : : : "memory");
        } else
                calls[me] = 1;
        expect(calls[me] == 1 && !wakes[me], "one to itself");
        verdict("and none of them another one");
}

static void shootdown(void)
{
        u32 me = self();

        for (int i = 0; i < 1024; i++)
                frames[0][i] = 1, frames[1][i] = 2;
        low_pages[(u32)window >> 12] = (u32)frames[0] | PTE_P | PTE_W;
        invlpg(window);
        begin(PAGE);
        await_ready();
        for (u32 n = 0; n < MOST_PROCESSORS; n++)
                expect(!(present >> n & 1) || n == me || seen[n] == 1, "the page as it was");
        low_pages[(u32)window >> 12] = (u32)frames[1] | PTE_P | PTE_W;
        invlpg(window);
        if (others())
                send(0, TO_OTHERS | ASSERT | FLUSH);
        await_done();
        for (u32 n = 0; n < MOST_PROCESSORS; n++)
                expect(!(present >> n & 1) || n == me || seen[n] == 2, "the page as it is");
        expect(*(volatile u32 *)window == 2, "here too");
        verdict("a changed page shows everywhere once the others were told");
}

void kmain(void)
{
        u32 expected;

        console_init();
        segments_init();
        idt_init();
        for (int i = 0; i < 1024; i++)
                low_pages[i] = i << 12 | PTE_P | PTE_W;
        apic_pages[LAPIC >> 12 & 1023] = LAPIC | PTE_P | PTE_W;
        page_directory[0] = (u32)low_pages | PTE_P | PTE_W;
        page_directory[LAPIC >> 22] = (u32)apic_pages | PTE_P | PTE_W;
        use_paging();
        expected = mp_processors(MOST_PROCESSORS);
        have_apic = expected != 0;
        outb(0x21, 0xff);
        outb(0xa1, 0xff);
        start_others(expected);
        counting();
        interrupts();
        shootdown();
        begin(OVER);
        finish("smp");
}
