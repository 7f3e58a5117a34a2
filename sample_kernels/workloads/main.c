/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kernels do all day, each piece many times over, to be measured one by one: the last word of the command
 * line names the piece, and without one all of them run. Interrupts are masked at the controller, so nothing
 * depends on time, and what is counted is the same natively and under any hypervisor.
 */
#include "check.h"
#include "memory.h"
#include "segments.h"
#include "timer.h"
#include "trial.h"

enum { DEVICE_ABSENT = 7, PAGE_FAULT = 14, SYSTEM_CALL = 0x80, LEAVE = 0x81, SOFT = 0x82 };

#define CODE 0x00400000                 /* ring 3's program, and behind it its data */
#define DATA 0x00401000
#define PAGES 64
#define TOUCHED 16                      /* pages that a forked process stores to */
#define FRAMES 192
#define INDEX(address) ((address) >> 12 & 1023)
#define SET_ENTRY(entry, value) VMI_SET_ENTRY(&(entry), value)

struct space {
        volatile u32 *directory, *table;
};

static volatile u32 kernel_directory[1024] __attribute__((aligned(4096)));
static u8 frames[FRAMES][PAGE_SIZE] __attribute__((aligned(4096)));
static u8 trap_stack[PAGE_SIZE] __attribute__((aligned(16))), thread_stack[PAGE_SIZE] __attribute__((aligned(16)));
static void *free_frames;
static struct space *current;
static volatile u32 calls, soft, zero_fills, copies, x87_switches, switches;

/* Ring 3, with a count in EAX and no stack: system calls; stores to pages. */
void user_calls(void), user_stores(void);
extern char user_start[];
asm (".section .user, \"aw\"\n"
     "user_calls: mov %eax, %ecx\n"
     "1: int $0x80\n dec %ecx\n jnz 1b\n int $0x81\n"
     "user_stores: mov %eax, %ecx\n mov $0x00401000, %edx\n"
     "1: mov %ecx, (%edx)\n add $4096, %edx\n dec %ecx\n jnz 1b\n int $0x81\n"
     ".text\n"
     /* void switch_stack(u32 *save, u32 load) */
     "switch_stack: mov 4(%esp), %eax\n mov 8(%esp), %edx\n push %ebp\n push %ebx\n push %esi\n push %edi\n"
     "mov %esp, (%eax)\n mov %edx, %esp\n pop %edi\n pop %esi\n pop %ebx\n pop %ebp\n ret");
void switch_stack(u32 *save, u32 load);

/* ---- address spaces ---- */

static void free_frame(volatile void *frame)
{
        *(void *volatile *)frame = free_frames;
        free_frames = (void *)frame;
}

static void *allocate_frame(void)
{
        void *frame = free_frames;

        if (!frame) {
                printf("workloads: out of memory\n");
                machine_exit(EXIT_FAILED);
        }
        free_frames = *(void **)frame;
        return memset(frame, 0, PAGE_SIZE);
}

static void *frame_of(u32 entry)
{
        return (void *)((entry & ~(PAGE_SIZE - 1)) + KERNEL_BASE);
}

static void enter(struct space *s)
{
        current = s;
        write_cr3(TO_PHYSICAL(s->directory));
}

/* An address space with the program in it, and no data yet. */
static void create(struct space *s)
{
        s->directory = allocate_frame();
        s->table = allocate_frame();
        SET_ENTRY(s->directory[KERNEL_SLOT], kernel_directory[KERNEL_SLOT]);
        SET_ENTRY(s->directory[CODE >> 22], TO_PHYSICAL(s->table) | PTE_P | PTE_W | PTE_U);
        SET_ENTRY(s->table[INDEX(CODE)], TO_PHYSICAL(user_start) | PTE_P | PTE_U);
}

/* The data of one as that of another: shared until one of them stores to it. */
static void fork(struct space *child, struct space *parent)
{
        create(child);
        for (u32 i = INDEX(DATA); i < INDEX(DATA) + PAGES; i++) {
                u32 entry = parent->table[i] & ~PTE_W;
                if (entry) {
                        SET_ENTRY(parent->table[i], entry);
                        SET_ENTRY(child->table[i], entry);
                }
        }
        write_cr3(TO_PHYSICAL(parent->directory));
}

/* Give back the pages that are its own: those it may store to. */
static void clear(struct space *s)
{
        for (u32 i = INDEX(DATA); i < INDEX(DATA) + PAGES; i++) {
                u32 entry = s->table[i];
                if (entry & PTE_W)
                        free_frame(frame_of(entry));
                if (entry)
                        SET_ENTRY(s->table[i], 0);
        }
}

static void destroy(struct space *s)
{
        clear(s);
        free_frame(s->table);
        free_frame(s->directory);
}

static void resolve(u32 address, u32 error)
{
        volatile u32 *entry = &current->table[INDEX(address)];

        expect(address >= DATA && address < DATA + PAGES * PAGE_SIZE && error & PF_W, "where the fault was");
        if (error & PF_P) {
                void *copy = memcpy(allocate_frame(), frame_of(*entry), PAGE_SIZE);
                SET_ENTRY(*entry, TO_PHYSICAL(copy) | PTE_P | PTE_W | PTE_U);
                invlpg((void *)address);
                copies++;
        } else {
                SET_ENTRY(*entry, TO_PHYSICAL(allocate_frame()) | PTE_P | PTE_W | PTE_U);
                zero_fills++;
        }
}

/* ---- traps ---- */

void trap(struct frame *f)
{
        switch (f->vector) {
        case SYSTEM_CALL:
                calls++;
                return;
        case SOFT:
                soft++;
                return;
        case PAGE_FAULT:
                resolve(read_cr2(), f->error);
                return;
        case DEVICE_ABSENT:
                clts();
                x87_switches++;
                return;
        case LEAVE:
                abandon();
        }
        printf("workloads: trap %u, error code %x, at %x\n", f->vector, f->error, f->eip);
        machine_exit(EXIT_FAILED);
}

static void run_user(void (*entry)(void), u32 count)
{
        trial_user((void (*)(void))((u32)entry - (u32)user_start + CODE), count, FLAG_IF | 2);
        asm volatile ("mov %0, %%ds\n\tmov %0, %%es" : : "r" (KERNEL_DS) : "memory");
}

/* ---- the pieces ---- */

#define REPEAT(times) for (u32 n = 0; n < (times); n++)

static void flags(void)
{
        u32 on = 0;

        sti();
        REPEAT(5000) {
                u32 saved = irq_save();
                on += saved & FLAG_IF;
                irq_restore(saved);
                cli();
                on += read_eflags() & FLAG_IF;
                sti();
        }
        cli();
        expect(on == 5000 * FLAG_IF, "the interrupt flag");
        verdict("5000 times interrupts off, read, back on, two ways");
}

static void returns(void)
{
        REPEAT(2000)
                asm volatile ("int %0" : : "i" (SOFT) : "memory");
        expect(soft == 2000, "handler entered");
        verdict("2000 interrupts and returns within ring 0");
}

static void system_calls(void)
{
        struct space s;

        create(&s);
        enter(&s);
        run_user(user_calls, 5000);
        write_cr3(TO_PHYSICAL(kernel_directory));
        destroy(&s);
        expect(calls == 5000, "system calls");
        verdict("5000 system calls");
}

static void faults(void)
{
        struct space s;

        create(&s);
        enter(&s);
        REPEAT(20) {
                run_user(user_stores, PAGES);
                clear(&s);
                enter(&s);
        }
        write_cr3(TO_PHYSICAL(kernel_directory));
        destroy(&s);
        expect(zero_fills == 20 * PAGES, "page faults");
        verdict("1280 page faults, each for a page of zeros");
}

static void updates(void)
{
        struct space s;
        u32 right = 0;

        create(&s);
        enter(&s);
        REPEAT(10000) {
                u32 i = INDEX(DATA) + n % PAGES;
                SET_ENTRY(s.table[i], TO_PHYSICAL(frames[0]) | (n & 1 ? PTE_P | PTE_W : PTE_P));
                right += (s.table[i] >> 1 & 1) == (n & 1);
                if (n % PAGES == PAGES - 1)
                        enter(&s);
        }
        memset((void *)s.table, 0, PAGE_SIZE);
        write_cr3(TO_PHYSICAL(kernel_directory));
        destroy(&s);
        expect(right == 10000, "entries read back");
        verdict("10000 page-table updates, translations dropped after each 64");
}

static u32 main_stack, other_stack;

static void to_other(u32 *save, u32 load, struct space *s)
{
        switches++;
        enter(s);
        tss.esp0 = (u32)trap_stack + sizeof(trap_stack);
        write_cr0(read_cr0() | CR0_TS);
        switch_stack(save, load);
        asm volatile ("fnop");          /* the first x87 instruction traps */
}

static struct space pair[2];

static void thread(void)
{
        for (;;)
                to_other(&other_stack, main_stack, &pair[0]);
}

static void context_switches(void)
{
        u32 *stack = (u32 *)(thread_stack + sizeof(thread_stack)) - 6;

        stack[4] = (u32)thread;
        other_stack = (u32)stack;
        create(&pair[0]);
        create(&pair[1]);
        REPEAT(500)
                to_other(&main_stack, other_stack, &pair[1]);
        write_cr3(TO_PHYSICAL(kernel_directory));
        destroy(&pair[0]);
        destroy(&pair[1]);
        expect(switches == 1000 && x87_switches == 999, "switches");
        verdict("1000 context switches, the x87 unit too");
}

static void forks(void)
{
        struct space parent, child;

        create(&parent);
        enter(&parent);
        run_user(user_stores, PAGES);
        u32 before = zero_fills;
        REPEAT(20) {
                fork(&child, &parent);
                enter(&child);
                run_user(user_stores, TOUCHED);         /* copies */
                clear(&child);                          /* a new program: empty memory */
                enter(&child);
                run_user(user_stores, TOUCHED);
                enter(&parent);
                destroy(&child);
        }
        write_cr3(TO_PHYSICAL(kernel_directory));
        for (u32 i = INDEX(DATA); i < INDEX(DATA) + PAGES; i++)
                free_frame(frame_of(parent.table[i]));
        destroy(&parent);
        expect(copies == 20 * TOUCHED && zero_fills - before == 20 * TOUCHED, "faults");
        verdict("20 processes forked, each with a new program then");
}

static const struct {
        const char *name;
        void (*run)(void);
} workloads[] = {
        { "flags", flags }, { "returns", returns }, { "system-calls", system_calls }, { "faults", faults },
        { "updates", updates }, { "context-switches", context_switches }, { "forks", forks },
};

#define WORKLOADS (sizeof(workloads) / sizeof(workloads[0]))

/* Does a string end in this word? */
static int ends_in(const char *text, const char *word)
{
        u32 length = 0, want = 0;

        while (text[length])
                length++;
        while (word[want])
                want++;
        for (u32 i = 0; i < want; i++)
                if (length < want || text[length - want + i] != word[i])
                        return 0;
        return length == want || text[length - want - 1] == ' ';
}

void kmain(u32 magic, u32 *info)
{
        const char *line = "";
        int left = 0;

        (void)magic;
        console_init();
        info = (u32 *)((u32)info + KERNEL_BASE);
        if (info[0] & 4)                /* there is a command line */
                line = (const char *)(info[4] + KERNEL_BASE);
        segments_init();
        idt_init();
        for (u32 v = SYSTEM_CALL; v <= LEAVE; v++)
                idt[v] = gate(KERNEL_CS, vectors[v], GATE_INTERRUPT | GATE_USER);
        tss.esp0 = (u32)trap_stack + sizeof(trap_stack);
        pic_init(0);
        SET_ENTRY(kernel_directory[KERNEL_SLOT], PTE_PS | PTE_W | PTE_P);
        write_cr3(TO_PHYSICAL(kernel_directory));
        write_cr0((read_cr0() & ~(CR0_EM | CR0_TS)) | CR0_MP | CR0_NE);
        for (int i = 0; i < FRAMES; i++)
                free_frame(frames[i]);

        u32 chosen = WORKLOADS;
        for (u32 i = 0; i < WORKLOADS; i++)
                if (ends_in(line, workloads[i].name))
                        chosen = i;
        for (u32 i = 0; i < WORKLOADS; i++)
                if (chosen == WORKLOADS || chosen == i)
                        workloads[i].run();
        for (void **f = free_frames; f; f = *f)
                left++;
        expect(left == FRAMES, "free frames");
        verdict("all memory was given back");
        finish("workloads");
}
