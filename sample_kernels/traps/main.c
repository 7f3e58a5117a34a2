/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Raises the exceptions of an i386, in ring 0 and in ring 3, and checks what the handler is given: vector,
 * error code, EIP, CS, EFLAGS.IF, the stack, CR2.
 *
 * The cases are in cases.S. Addresses are compared, never printed: the log is the same wherever a patcher
 * may have put the code.
 */
#include "x86.h"
#include "check.h"
#include "timer.h"
#include "trial.h"
#include "traps.h"

#define DR6_BS 0x4000                   /* the debug exception was a single step */

struct test {
        const char *what;
        void (*entry)(void);
        u32 eip, argument, error;
        u8 ring, vector;
        u16 flags;
};

extern const struct test cases[], cases_end[];
extern char user_start[], user_end[];

static u32 directory[1024] __attribute__((aligned(4096)));
static u32 low[1024] __attribute__((aligned(4096))), special[1024] __attribute__((aligned(4096)));
static u8 page[PAGE_SIZE] __attribute__((aligned(4096)));
static u8 trap_stack[PAGE_SIZE] __attribute__((aligned(16)));
static u64 ldt[2];

static const struct test *now;          /* the case under way */
static u32 cr0, now_if;                 /* CR0 between cases; EFLAGS.IF of the case */
static int events, nested;

static void check_frame(const struct frame *f, u32 handler_flags)
{
        u32 eip = now->flags & EIP_ARG ? now->argument : now->eip;
        /* Bit 0 of a selector error says "external"; for a fault within delivery, emulators forget it. */
        u32 error = f->vector == PF ? f->error : f->error & ~1;
        int trap_gate = f->vector == BP || f->vector == OF || f->vector == TRAP_GATE;

        if (f->vector != now->vector || error != now->error)
                printf("  got vector %u, error code %x\n", f->vector, f->error);
        expect(f->vector == now->vector, "vector");
        expect(error == now->error, "error code");
        expect(f->eip == eip || now->flags & ANY_EIP, "EIP");
        expect(f->cs == (now->ring ? USER_CS : KERNEL_CS), "CS");
        expect((f->eflags & FLAG_IF) == now_if, "EFLAGS.IF in the frame");
        expect((handler_flags & FLAG_IF) == (trap_gate ? now_if : 0), "EFLAGS.IF in the handler");
        if (now->ring) {
                expect(f->ss == USER_DS, "SS");
                expect(f->esp == (u32)user_stack_top - (now->flags & EIP_ARG ? 4 : 0), "ESP");
                expect(f + 1 == (void *)tss.esp0, "stack of the handler");
        }
        if (f->vector == PF)
                expect(read_cr2() == now->argument, "CR2");
}

/* Take away what made the trap, so that the case can go on after iret. */
static void settle(struct frame *f)
{
        if (now->flags & NEST)
                asm volatile ("ud2\n\tmovl $0, %0" : "=m" (*(u32 *)ON_DEMAND));
        if (f->vector == DB) {
                expect(read_dr6() & DR6_BS, "DR6.BS");
                write_dr6(0);
                f->eflags &= ~FLAG_TF;
        } else if (f->vector == NM && now->flags & WITH_TS) {
                clts();
        } else if (f->vector == NM) {
                write_cr0(cr0);
        } else if (f->vector == PF) {
                special[(ON_DEMAND - HOLE) / PAGE_SIZE] = (u32)page | PTE_P | PTE_W | PTE_U;
        }
}

void trap(struct frame *f)
{
        u32 flags = read_eflags();

        if (f->vector == LEAVE) {
                expect(f->cs == USER_CS && f->eflags & FLAG_IF, "frame at the end of a ring 3 case");
                abandon();
        }
        if (events == 1 && now->flags & NEST) {         /* inside settle() */
                expect(f->cs == KERNEL_CS && f->vector == (nested ? PF : UD), "nested fault");
                if (nested++)
                        special[(ON_DEMAND - HOLE) / PAGE_SIZE] = (u32)page | PTE_P | PTE_W | PTE_U;
                else
                        f->eip += 2;                    /* past ud2 */
                return;
        }
        events++;
        check_frame(f, flags);
        if (!(now->flags & RESUME))
                abandon();
        settle(f);
}

static void run(const struct test *t)
{
        static const char *const names[] = {
                "#DE", "#DB", "", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP", "#PF", "", "#MF",
        };
        static const u16 divide_unmasked = 0x37b;
        static const float zero;
        u64 *hidden = t->flags >> 8 ? &idt[(t->flags >> 8) - 1] : 0;

        now = t;
        now_if = t->ring || (t - cases) & 1 ? FLAG_IF : 0;      /* ring 0: alternately off and on */
        events = nested = 0;
        if (hidden)
                *hidden &= ~((u64)GATE_PRESENT << 40);
        if (t->flags & WITH_MF)
                asm volatile ("fninit\n\tfldcw %0\n\tfld1\n\tfdivs %1" : : "m" (divide_unmasked), "m" (zero));
        if (t->flags & (WITH_TS | WITH_EM))
                write_cr0(cr0 | (t->flags & WITH_TS ? CR0_TS : CR0_EM));
        if (!t->ring && now_if)
                sti();
        if (t->ring)
                trial_user(t->entry, t->argument, 2 | FLAG_IF | (t->flags & STEP ? FLAG_TF : 0));
        else
                trial(t->entry, t->argument);
        cli();
        write_cr0(cr0);
        if (hidden)
                *hidden |= (u64)GATE_PRESENT << 40;
        if (t->flags & WITH_MF)
                asm volatile ("fninit");
        special[(ON_DEMAND - HOLE) / PAGE_SIZE] = 0;
        invlpg((void *)ON_DEMAND);

        expect(events == (t->vector != NOTHING), "number of traps");
        expect(nested == (t->flags & NEST ? 2 : 0), "number of nested faults");
        printf("%s ring %u ", t->vector == NOTHING ? "---" : t->vector <= MF ? names[t->vector] : "int", t->ring);
        if (t->vector == DF || (t->vector >= TS && t->vector <= PF))
                printf("(%04x) ", t->error);
        else
                printf("       ");
        verdict(t->what);
}

static void descriptors(void)
{
        static const u8 user_gates[] = {
                BP, OF, SYSCALL, ABSENT_GATE, RING2_GATE, DATA_GATE, NULL_GATE, ABSENT_CODE_GATE, LEAVE,
        };

        segments_init();
        pic_init(0);                    /* firmware leaves its timer ticking */
        gdt[ABSENT_DATA / 8] = flat_segment(SEG_DATA & ~SEG_PRESENT);
        gdt[ABSENT_DATA3 / 8] = flat_segment((SEG_DATA | 3 * SEG_DPL) & ~SEG_PRESENT);
        gdt[ABSENT_CODE / 8] = flat_segment(SEG_CODE & ~SEG_PRESENT);
        gdt[ONLY_CODE / 8] = flat_segment(SEG_CODE_ONLY);
        gdt[RING2_CODE / 8] = flat_segment(SEG_CODE | 2 * SEG_DPL);
        gdt[LDT_SELECTOR / 8] = system_segment(SYS_LDT, ldt, sizeof(ldt));
        gdt[ABSENT_LDT / 8] = system_segment(SYS_LDT & ~SEG_PRESENT, ldt, sizeof(ldt));
        gdt[ABSENT_CALL_GATE / 8] = gate(KERNEL_CS, vectors[0], (SYS_CALL_GATE | GATE_USER) & ~GATE_PRESENT);
        gdt[KERNEL_CALL_GATE / 8] = gate(KERNEL_CS, vectors[0], SYS_CALL_GATE);
        ldt[LDT_DATA / 8] = flat_segment(SEG_DATA | 3 * SEG_DPL);
        ldt[LDT_ABSENT / 8] = flat_segment((SEG_DATA | 3 * SEG_DPL) & ~SEG_PRESENT);
        lldt(LDT_SELECTOR);
        tss.esp0 = (u32)(trap_stack + sizeof(trap_stack));
        tss.ss2 = KERNEL_DS;            /* wrong: its privilege is not 2 */

        idt_init();
        idt[BP] = gate(KERNEL_CS, vectors[BP], GATE_TRAP);
        idt[OF] = gate(KERNEL_CS, vectors[OF], GATE_TRAP);
        idt[TRAP_GATE] = gate(KERNEL_CS, vectors[TRAP_GATE], GATE_TRAP | GATE_USER);
        idt[RING2_GATE] = gate(RING2_CODE, vectors[RING2_GATE], GATE_INTERRUPT);
        idt[DATA_GATE] = gate(KERNEL_DS, vectors[DATA_GATE], GATE_INTERRUPT);
        idt[NULL_GATE] = gate(0, vectors[NULL_GATE], GATE_INTERRUPT);
        idt[ABSENT_CODE_GATE] = gate(ABSENT_CODE, vectors[ABSENT_CODE_GATE], GATE_INTERRUPT);
        for (u32 i = 0; i < sizeof(user_gates); i++)
                idt[user_gates[i]] |= (u64)GATE_USER << 40;
        idt[ABSENT_GATE] &= ~((u64)GATE_PRESENT << 40);
}

/* The first 4 MiB one to one, and four pages of their own at HOLE. */
static void paging(void)
{
        for (u32 i = 0; i < 1024; i++)
                low[i] = i * PAGE_SIZE | PTE_P | PTE_W;
        for (char *p = user_start; p < user_end; p += PAGE_SIZE)
                low[(u32)p / PAGE_SIZE] |= PTE_U;
        low[(u32)user_stack / PAGE_SIZE] |= PTE_U;
        special[(READ_ONLY - HOLE) / PAGE_SIZE] = (u32)page | PTE_P | PTE_U;
        special[(KERNEL_PAGE - HOLE) / PAGE_SIZE] = (u32)page | PTE_P | PTE_W;
        directory[0] = (u32)low | PTE_P | PTE_W | PTE_U;
        directory[HOLE >> 22] = (u32)special | PTE_P | PTE_W | PTE_U;
        write_cr3((u32)directory);
        cr0 = (read_cr0() & ~(CR0_TS | CR0_EM)) | CR0_PG | CR0_WP | CR0_NE | CR0_MP;
        write_cr0(cr0);
}

void kmain(void)
{
        console_init();
        descriptors();
        paging();
        for (const struct test *t = cases; t < cases_end; t++)
                run(t);
        finish("traps");
}
