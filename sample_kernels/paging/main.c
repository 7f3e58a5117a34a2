/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Two-level paging with 4 KiB and 4 MiB pages, from a kernel linked 3 GiB above where it is loaded:
 * permissions, CR0.WP, accessed and dirty bits, fault codes and CR2, aliases, the page directory mapped
 * into itself, INVLPG and CR3 loads. A stale translation is never relied on, only that it goes away when the
 * architecture says so.
 */
#include "x86.h"
#include "check.h"
#include "memory.h"
#include "segments.h"
#include "timer.h"
#include "trial.h"

#define LEAVE 0x80                      /* the way back from ring 3 */
#define PAGE_FAULT 14
#define NO_FAULT 0xffffffff

#define WINDOW 0x00400000               /* 4 MiB behind `table` */
#define LARGE 0x40000000                /* a 4 MiB page: the first 4 MiB of memory */
#define RECURSIVE 0xffc00000            /* the last slot points at the directory: all page tables appear here */
#define SLOT(address) ((address) >> 22)
#define INDEX(address) ((address) >> 12 & 1023)
#define USER_PAGE (WINDOW + 1023 * PAGE_SIZE)           /* where ring 3 sees its code */

/* Every entry is written this way: in the annotated kernel the store is in a slot. */
#define SET_ENTRY(entry, value) VMI_SET_ENTRY(&(entry), value)

/* Volatile: the compiler cannot know that one byte has several addresses. */
static volatile u32 directory[1024] __attribute__((aligned(4096))), other[1024] __attribute__((aligned(4096)));
static volatile u32 table[1024] __attribute__((aligned(4096))), other_table[1024] __attribute__((aligned(4096)));
static volatile u8 frames[16][PAGE_SIZE] __attribute__((aligned(4096)));
static u8 trap_stack[PAGE_SIZE] __attribute__((aligned(16)));

/* Loads and stores whose faults are looked at; AL is stored. Those for ring 3 are seen at USER_PAGE. */
void load(void), store(void), store_end(void), user_load(void), user_store(void);
asm ("load: mov (%eax), %al\nret\n"
     "store: mov %al, (%eax)\nret\n"
     ".section .user, \"aw\"\n"
     "user_load: mov (%eax), %al\nint $0x80\n"
     "user_store: mov %al, (%eax)\nint $0x80\n"
     ".text");
extern char user_start[];

static volatile u32 fault, fault_address, faults, next_frame;
static volatile int demand;             /* the handler maps a page instead of giving up */

void trap(struct frame *f)
{
        if (f->vector == PAGE_FAULT && demand) {
                faults++;
                SET_ENTRY(table[INDEX(read_cr2())], TO_PHYSICAL(frames[next_frame++]) | PTE_P | PTE_W);
                return;
        }
        if (f->vector == PAGE_FAULT) {
                fault = f->error;
                fault_address = read_cr2();
        } else {
                expect(f->vector == LEAVE, "no other trap");
        }
        abandon();
}

/* Touch one byte; the error code of the page fault, or NO_FAULT. */
static u32 touch(int ring, int write, u32 address)
{
        fault = NO_FAULT;
        if (ring)
                trial_user((void (*)(void))(USER_PAGE + (write ? (char *)user_store : (char *)user_load) - user_start),
                           address, FLAG_IF | 2);
        else
                trial(write ? store : load, address);
        if (fault != NO_FAULT)
                expect(fault_address == address, "CR2");
        return fault;
}

static u8 *map(u32 address, int frame, u32 flags)
{
        SET_ENTRY(table[INDEX(address)], TO_PHYSICAL(frames[frame]) | flags);
        invlpg((void *)address);
        return (u8 *)address;
}

static void write_protect(int on)
{
        write_cr0(on ? read_cr0() | CR0_WP : read_cr0() & ~CR0_WP);
}

static void aliases(void)
{
        volatile u8 *a = map(WINDOW, 0, PTE_P | PTE_W), *b = map(WINDOW + 5 * PAGE_SIZE, 0, PTE_P | PTE_W);

        a[7] = 0x11;
        expect(b[7] == 0x11 && frames[0][7] == 0x11, "one frame at three addresses");
        b[8] = 0x22;
        expect(*(volatile u16 *)(a + 7) == 0x2211, "written through another address");
        expect(*(volatile u32 *)(LARGE + TO_PHYSICAL(frames[0]) + 7) == 0x2211, "the frame in a 4 MiB page");
        expect(touch(0, 0, TO_PHYSICAL(frames[0])) == 0, "physical addresses are not mapped");
        verdict("aliases of a frame, kernel above 3 GiB");
}

static u32 expected_fault(int ring, int write, u32 upper, u32 lower, int wp)
{
        u32 both = upper & lower;
        int refused = ring ? !(both & PTE_U) || (write && !(both & PTE_W)) : write && wp && !(both & PTE_W);

        return refused ? PF_P | (write ? PF_W : 0) | (ring ? PF_U : 0) : NO_FAULT;
}

/* Every combination of U and W in directory and table, of ring, access and CR0.WP. */
static void permissions(void)
{
        u32 address = WINDOW + LARGE_PAGE_SIZE;         /* `other_table`, so that ring 3 code keeps its own rights */

        for (u32 i = 0; i < 16 * 8; i++) {
                u32 upper = (i & 3) << 1, lower = (i >> 2 & 3) << 1;
                int ring = i >> 4 & 1 ? 3 : 0, write = i >> 5 & 1, wp = i >> 6;

                SET_ENTRY(other_table[0], TO_PHYSICAL(frames[1]) | lower | PTE_P);
                SET_ENTRY(directory[SLOT(address)], TO_PHYSICAL(other_table) | upper | PTE_P);
                invlpg((void *)address);
                write_protect(wp);
                expect(touch(ring, write, address) == expected_fault(ring, write, upper, lower, wp), "4 KiB page");

                SET_ENTRY(directory[SLOT(address)], upper | PTE_PS | PTE_P);
                invlpg((void *)address);
                expect(touch(ring, write, address + TO_PHYSICAL(frames[1])) ==
                       expected_fault(ring, write, upper, upper, wp), "4 MiB page");
        }
        write_protect(1);
        SET_ENTRY(directory[SLOT(address)], 0);
        invlpg((void *)address);
        verdict("user, writable and CR0.WP in all combinations, 4 KiB and 4 MiB pages");
}

static void absent(void)
{
        u32 no_table = 0x80000000;

        map(WINDOW, 0, PTE_P | PTE_W);
        map(WINDOW + PAGE_SIZE, 0, 0);
        for (int ring = 0; ring <= 3; ring += 3) {
                u32 user = ring ? PF_U : 0;
                expect(touch(ring, 0, WINDOW + PAGE_SIZE + 0x123) == user, "load, absent page");
                expect(touch(ring, 1, WINDOW + PAGE_SIZE + 0xfff) == (user | PF_W), "store, absent page");
                expect(touch(ring, 0, no_table + 1) == user, "load, absent table");
                expect(touch(ring, 1, no_table + 2) == (user | PF_W), "store, absent table");
        }
        SET_ENTRY(directory[SLOT(no_table)], 1 << 21 | PTE_PS | PTE_W | PTE_P);
        expect(touch(0, 0, no_table) & PF_RSVD, "reserved bit of a 4 MiB page");
        SET_ENTRY(directory[SLOT(no_table)], 0);
        invlpg((void *)no_table);
        write_cr2(0x12345678);
        expect(read_cr2() == 0x12345678, "CR2 is writable");
        verdict("page fault codes and CR2");
}

void split_load(void);
asm ("split_load: mov -2(%eax), %eax\nret");

static void across_pages(void)
{
        map(WINDOW, 0, PTE_P | PTE_W);
        map(WINDOW + PAGE_SIZE, 0, 0);
        fault = NO_FAULT;
        trial(split_load, WINDOW + PAGE_SIZE);
        expect(fault == 0 && fault_address == WINDOW + PAGE_SIZE, "second page absent");
        *(u16 *)(map(WINDOW, 2, PTE_P | PTE_W) + PAGE_SIZE - 2) = 0xcdef;
        *(u16 *)map(WINDOW + PAGE_SIZE, 3, PTE_P | PTE_W) = 0x89ab;
        expect(*(volatile u32 *)(WINDOW + PAGE_SIZE - 2) == 0x89abcdef, "value from two frames");
        verdict("access across two pages");
}

static void accessed_dirty(void)
{
        volatile u32 *pte = &table[INDEX(WINDOW)], *pde = &directory[SLOT(LARGE)];

        SET_ENTRY(directory[SLOT(WINDOW)], directory[SLOT(WINDOW)] & ~PTE_A);
        write_cr3(TO_PHYSICAL(directory));
        map(WINDOW, 4, PTE_P | PTE_W);
        expect(!(*pte & (PTE_A | PTE_D)), "clear at first");
        touch(0, 0, WINDOW);
        expect((*pte & (PTE_A | PTE_D)) == PTE_A, "accessed by a load");
        expect(directory[SLOT(WINDOW)] & PTE_A, "accessed, in the directory");
        touch(0, 1, WINDOW);
        expect((*pte & (PTE_A | PTE_D)) == (PTE_A | PTE_D), "dirty by a store");
        SET_ENTRY(*pte, *pte & ~(PTE_A | PTE_D));
        invlpg((void *)WINDOW);
        touch(0, 0, WINDOW);
        expect((*pte & (PTE_A | PTE_D)) == PTE_A, "set again after invlpg");

        SET_ENTRY(*pde, *pde & ~(PTE_A | PTE_D));
        invlpg((void *)LARGE);
        touch(0, 0, LARGE + TO_PHYSICAL(frames[4]));
        expect((*pde & (PTE_A | PTE_D)) == PTE_A, "4 MiB page accessed");
        touch(0, 1, LARGE + TO_PHYSICAL(frames[4]));
        expect(*pde & PTE_D, "4 MiB page dirty");
        verdict("accessed and dirty bits");
}

static void invalidation(void)
{
        volatile u8 *p = map(WINDOW, 5, PTE_P | PTE_W);

        frames[5][0] = 55;
        frames[6][0] = 66;
        expect(p[0] == 55, "first frame");
        SET_ENTRY(table[0], TO_PHYSICAL(frames[6]) | PTE_P | PTE_W);
        invlpg((void *)(WINDOW + 0x800));
        expect(p[0] == 66, "another frame after invlpg, by any address of the page");
        SET_ENTRY(table[0], TO_PHYSICAL(frames[5]) | PTE_P | PTE_W);
        write_cr3(read_cr3());
        expect(p[0] == 55, "another frame after a CR3 load");
        map(WINDOW, 5, 0);
        expect(touch(0, 0, WINDOW) == 0, "gone after invlpg");
        SET_ENTRY(table[0], TO_PHYSICAL(frames[6]) | PTE_P);
        expect(p[0] == 66, "absence is never remembered");
        invlpg((void *)WINDOW);
        expect(touch(0, 1, WINDOW) == (PF_P | PF_W), "read-only");
        SET_ENTRY(directory[SLOT(LARGE)], 0);
        invlpg((void *)(LARGE + 0x123456));
        expect(touch(0, 0, LARGE) == 0, "4 MiB page gone after invlpg");
        SET_ENTRY(directory[SLOT(LARGE)], PTE_PS | PTE_W | PTE_P);
        verdict("invlpg and CR3 loads");
}

static void recursive(void)
{
        volatile u32 *tables = (u32 *)RECURSIVE, *mirror = (u32 *)0xfffff000;

        expect(mirror[SLOT(WINDOW)] == directory[SLOT(WINDOW)], "the directory in itself");
        SET_ENTRY(tables[INDEX(WINDOW) + SLOT(WINDOW) * 1024], TO_PHYSICAL(frames[7]) | PTE_P | PTE_W);
        invlpg((void *)WINDOW);
        frames[7][9] = 77;
        expect(*(volatile u8 *)(WINDOW + 9) == 77, "mapped through the recursive slot");
        SET_ENTRY(tables[INDEX(WINDOW) + SLOT(WINDOW) * 1024], 0);
        invlpg((void *)WINDOW);
        expect(touch(0, 0, WINDOW) == 0, "unmapped through the recursive slot");
        verdict("page tables seen through the directory's own slot");
}

static void address_spaces(void)
{
        volatile u8 *p = map(WINDOW, 8, PTE_P | PTE_W);

        for (int i = 0; i < 1024; i++)
                SET_ENTRY(other[i], directory[i]);
        SET_ENTRY(other[SLOT(WINDOW)], TO_PHYSICAL(other_table) | PTE_P | PTE_W);
        SET_ENTRY(other_table[0], TO_PHYSICAL(frames[9]) | PTE_P | PTE_W);
        frames[8][0] = frames[9][0] = 0;
        for (int i = 0; i < 10; i++) {
                write_cr3(TO_PHYSICAL(i & 1 ? other : directory));
                expect(read_cr3() == TO_PHYSICAL(i & 1 ? other : directory), "CR3 reads back");
                p[0] += i;
        }
        write_cr3(TO_PHYSICAL(directory));
        expect(frames[8][0] == 0 + 2 + 4 + 6 + 8 && frames[9][0] == 1 + 3 + 5 + 7 + 9, "one address, two frames");
        verdict("two address spaces");
}

static void demand_paging(void)
{
        u32 sum = 0;

        for (int i = 0; i < 8; i++)
                map(WINDOW + i * PAGE_SIZE, 0, 0);
        for (u32 i = 0; i < 6; i++)
                memset((u8 *)frames[10 + i], i, PAGE_SIZE);
        faults = 0;
        next_frame = 10;
        demand = 1;
        for (u32 i = 0; i < 6 * PAGE_SIZE; i += 64)
                sum += *(volatile u8 *)(WINDOW + i);
        demand = 0;
        expect(faults == 6, "one fault for each page");
        expect(sum == (0 + 1 + 2 + 3 + 4 + 5) * PAGE_SIZE / 64, "the loads were repeated");
        verdict("demand paging");
}

void kmain(void)
{
        console_init();
        segments_init();
        pic_init(0);                    /* firmware leaves its timer ticking */
        tss.esp0 = (u32)(trap_stack + sizeof(trap_stack));
        idt_init();
        idt[LEAVE] = gate(KERNEL_CS, vectors[LEAVE], GATE_INTERRUPT | GATE_USER);

        SET_ENTRY(directory[SLOT(LARGE)], PTE_PS | PTE_W | PTE_P);
        SET_ENTRY(directory[SLOT(KERNEL_BASE)], PTE_PS | PTE_W | PTE_P);
        SET_ENTRY(directory[SLOT(WINDOW)], TO_PHYSICAL(table) | PTE_P | PTE_W | PTE_U);
        SET_ENTRY(directory[SLOT(RECURSIVE)], TO_PHYSICAL(directory) | PTE_P | PTE_W);
        SET_ENTRY(table[INDEX(USER_PAGE)], TO_PHYSICAL(user_start) | PTE_P | PTE_U);
        write_cr3(TO_PHYSICAL(directory));

        aliases();
        permissions();
        absent();
        across_pages();
        accessed_dirty();
        invalidation();
        recursive();
        address_spaces();
        demand_paging();
        finish("paging");
}
