/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A small multitasking kernel: processes in ring 3 with an address space each, system calls, preemption by the
 * timer, round robin, sleeping, a pipe, demand-zero and copy-on-write pages, x87 registers switched on first use.
 *
 * System calls run with interrupts on and are never preempted: the timer only takes the processor from ring 3.
 * What the timer handler touches too is guarded by irq_save.
 */
#include "check.h"
#include "memory.h"
#include "sched.h"
#include "segments.h"
#include "timer.h"

#define TIMER_HERTZ 1000
#define STACK_BYTES 4096
#define FRAMES 160
#define PIPE_SLOTS 4

enum { DEVICE_ABSENT = 7, PROTECTION = 13, PAGE_FAULT = 14 };
enum state { READY, SLEEPING, WAITING, DONE };

struct process {
        u32 stack_pointer;              /* of the kernel stack, while switched out */
        u32 *directory, *table;         /* one page table covers USER_START to USER_END */
        enum state state;
        u32 wake;                       /* SLEEPING: the tick to wake at */
        const void *channel;            /* WAITING: for what */
        u32 status;                     /* DONE */
        int has_x87;
        u8 x87[108];
};

extern u8 program[], program_end[];
void switch_stack(u32 *save, u32 load);
void trap_return(void);

static struct process processes[PROCESSES], *current = processes, *x87_owner;   /* 0 is the idle process */
static u8 stacks[PROCESSES][STACK_BYTES] __attribute__((aligned(16)));
static u8 frames[FRAMES][PAGE_SIZE] __attribute__((aligned(4096)));
static u32 kernel_directory[1024] __attribute__((aligned(4096)));
static volatile u32 clock[1024] __attribute__((aligned(4096)));        /* ticks in the first word; mapped at USER_CLOCK */
static void *free_frames;

static struct message pipe[PIPE_SLOTS];
static u32 pipe_sent, pipe_received;

static u32 running, switches, preemptions, idles, zero_fills, copies, x87_switches;

/* ---- memory ---- */

static void free_frame(void *frame)
{
        u32 flags = irq_save();
        *(void **)frame = free_frames;
        free_frames = frame;
        irq_restore(flags);
}

static void *allocate_frame(void)
{
        u32 flags = irq_save();
        void *frame = free_frames;
        if (!frame) {
                printf("sched: out of memory\n");
                machine_exit(EXIT_FAILED);
        }
        free_frames = *(void **)frame;
        irq_restore(flags);
        return memset(frame, 0, PAGE_SIZE);
}

static int owns(const struct process *p, u32 pte)
{
        return p && pte & PTE_P && pte & PTE_W;         /* pages of the program and the clock are shared, not writable */
}

static void free_memory(struct process *p)
{
        for (int i = 0; i < 1024; i++)
                if (owns(p, p->table[i]))
                        free_frame((void *)((p->table[i] & ~(PAGE_SIZE - 1)) + KERNEL_BASE));
        free_frame(p->table);
        free_frame(p->directory);
}

/* A page of the process, on its first use or its first store; 0 if the access was not its right. */
static int resolve(struct process *p, u32 address, u32 error)
{
        u32 offset = address - USER_START, *pte = &p->table[address >> 12 & 1023];
        u8 *shared = program + (offset & ~(PAGE_SIZE - 1));

        if (address < USER_START || address >= USER_END || (address & ~(PAGE_SIZE - 1)) == USER_CLOCK)
                return 0;
        if (shared >= program_end) {
                if (error & PF_P)
                        return 0;
                *pte = TO_PHYSICAL(allocate_frame()) | PTE_P | PTE_W | PTE_U;
                zero_fills++;
        } else if (error & PF_W) {
                u32 copy = TO_PHYSICAL(memcpy(allocate_frame(), shared, PAGE_SIZE));
                *pte = copy | PTE_P | PTE_W | PTE_U;
                invlpg((void *)address);
                copies++;
        } else {
                *pte = TO_PHYSICAL(shared) | PTE_P | PTE_U;
        }
        return 1;
}

/* ---- processes ---- */

/* Give the processor to the next ready process. Interrupts are off; returns when it is our turn again. */
static int schedule(void)
{
        struct process *previous = current, *next = processes;

        for (int i = 1; i <= PROCESSES; i++) {
                struct process *p = &processes[(previous - processes + i) % PROCESSES];
                if (p != processes && p->state == READY) {
                        next = p;
                        break;
                }
        }
        if (next == previous)
                return 0;
        switches++;
        current = next;
        tss.esp0 = (u32)stacks[next - processes + 1];
        write_cr3(TO_PHYSICAL(next->directory));
        write_cr0(read_cr0() | CR0_TS);         /* the first x87 instruction will trap */
        switch_stack(&previous->stack_pointer, next->stack_pointer);
        return 1;
}

static void wait(const void *channel)           /* interrupts are off */
{
        current->channel = channel;
        current->state = WAITING;
        schedule();
}

static void wake(const void *channel)           /* interrupts are off */
{
        for (struct process *p = processes; p < processes + PROCESSES; p++)
                if (p->state == WAITING && p->channel == channel)
                        p->state = READY;
}

static void __attribute__((noreturn)) exit(u32 status)
{
        cli();
        current->status = status;
        current->state = DONE;
        if (x87_owner == current)
                x87_owner = 0;
        write_cr3(TO_PHYSICAL(kernel_directory));
        free_memory(current);
        running--;
        schedule();
        for (;;)
                ;
}

static void spawn(struct process *p)
{
        struct frame *f = (struct frame *)stacks[p - processes + 1] - 1;
        u32 *stack = (u32 *)f - 5;              /* what switch_stack takes off: four registers and where to return to */

        p->directory = allocate_frame();
        p->table = allocate_frame();
        p->directory[KERNEL_SLOT] = kernel_directory[KERNEL_SLOT];
        p->directory[USER_START >> 22] = TO_PHYSICAL(p->table) | PTE_P | PTE_W | PTE_U;
        p->table[USER_CLOCK >> 12 & 1023] = TO_PHYSICAL(clock) | PTE_P | PTE_U;
        f->gs = f->fs = f->es = f->ds = f->ss = USER_DS;
        f->cs = USER_CS;
        f->eip = USER_START;
        f->esp = USER_END;
        f->eflags = FLAG_IF | 2;
        stack[4] = (u32)trap_return;
        p->stack_pointer = (u32)stack;
        p->state = READY;
        running++;
}

/* ---- system calls ---- */

static int user_range(u32 address, u32 bytes)
{
        return address >= USER_START && address < USER_END && bytes <= USER_END - address;
}

static u32 system_call(u32 number, u32 a, u32 b)
{
        u32 flags, result = 0;

        if (number == SYS_EXIT)
                exit(a);
        if ((number == SYS_WRITE && !user_range(a, b)) || (number == SYS_RECEIVE && !user_range(a, sizeof(struct message))))
                exit(EXIT_KILLED);
        flags = irq_save();
        switch (number) {
        case SYS_WRITE:
                while (b--)
                        putchar(*(char *)a++);
                break;
        case SYS_GETPID:
                result = current - processes;
                break;
        case SYS_YIELD:
                schedule();
                break;
        case SYS_SLEEP:
                current->wake = clock[0] + a;
                current->state = SLEEPING;
                schedule();
                break;
        case SYS_SEND:
                while (pipe_sent - pipe_received == PIPE_SLOTS)
                        wait(&pipe_received);
                pipe[pipe_sent++ % PIPE_SLOTS] = (struct message){ current - processes, a };
                wake(&pipe_sent);
                break;
        case SYS_RECEIVE:
                while (pipe_sent == pipe_received)
                        wait(&pipe_sent);
                *(struct message *)a = pipe[pipe_received++ % PIPE_SLOTS];
                wake(&pipe_received);
        }
        irq_restore(flags);
        return result;
}

/* ---- traps ---- */

static void tick(void)
{
        clock[0]++;
        for (struct process *p = processes; p < processes + PROCESSES; p++)
                if (p->state == SLEEPING && (int)(clock[0] - p->wake) >= 0)
                        p->state = READY;
        pic_eoi();
}

static void switch_x87(void)
{
        clts();
        if (x87_owner == current)
                return;
        if (x87_owner)
                asm volatile ("fnsave %0" : "=m" (x87_owner->x87));
        if (current->has_x87)
                asm volatile ("frstor %0" : : "m" (current->x87));
        else
                asm volatile ("fninit");
        current->has_x87 = 1;
        x87_owner = current;
        x87_switches++;
}

void trap(struct frame *f)
{
        int user = (f->cs & 3) == 3;

        switch (f->vector) {
        case IRQ_TIMER:
                tick();
                if (user)
                        preemptions += schedule();
                return;
        case SYSCALL_VECTOR:
                f->eax = system_call(f->eax, f->ebx, f->ecx);
                return;
        case DEVICE_ABSENT:
                switch_x87();
                return;
        case PAGE_FAULT:
                if (current != processes && resolve(current, read_cr2(), f->error))
                        return;
        }
        if (user)
                exit(EXIT_KILLED);
        printf("sched: trap %u in the kernel, error code %x\n", f->vector, f->error);
        machine_exit(EXIT_FAILED);
}

void kmain(void)
{
        console_init();
        segments_init();
        idt_init();
        idt[SYSCALL_VECTOR] = gate(KERNEL_CS, vectors[SYSCALL_VECTOR], GATE_TRAP | GATE_USER);
        kernel_directory[KERNEL_SLOT] = PTE_PS | PTE_W | PTE_P;
        write_cr3(TO_PHYSICAL(kernel_directory));
        write_cr0((read_cr0() & ~CR0_EM) | CR0_MP | CR0_NE | CR0_TS);
        for (int i = 0; i < FRAMES; i++)
                free_frame(frames[i]);

        processes[0].directory = kernel_directory;
        processes[0].state = DONE;      /* never chosen as ready: it runs when nobody is */
        for (struct process *p = processes + 1; p < processes + PROCESSES; p++)
                spawn(p);
        printf("sched: %u processes\n", running);
        pic_init(1 << 0);
        timer_periodic(TIMER_HERTZ);
        while (running) {
                if (!schedule()) {
                        idles++;
                        sti_hlt();
                        cli();
                }
        }

        expect(processes[COLLECTOR].status == 0, "results");
        verdict("the collector found every result right");
        expect(processes[TRESPASSER].status == EXIT_KILLED && processes[OUTLAW].status == EXIT_KILLED, "exit status");
        verdict("ring 3 was kept from kernel memory and from cli");
        expect(switches >= 200, "context switches");
        expect(preemptions > 0, "preemption by the timer");
        expect(idles > 0, "idle time");
        expect(x87_switches > 2, "x87 registers changed hands");
        expect(zero_fills > 0 && copies > 0, "page faults");
        verdict("context switches, preemption, idling, x87 switches, demand-zero and copied pages");
        int left = 0;
        for (void **f = free_frames; f; f = *f)
                left++;
        expect(left == FRAMES, "free frames");
        verdict("all memory was given back");
        finish("sched");
}
