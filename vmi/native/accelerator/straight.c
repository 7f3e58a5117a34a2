// SPDX-License-Identifier: GPL-2.0-only
/*
 * Delivery of events for the plain cases: a 32-bit interrupt or trap gate in protected mode, entered on the
 * same ring or through the TSS on an inner one, with everything present and where it belongs. It does what
 * vmi/native/interrupts.py does, store by store, and leaves all else to it: whatever is not plain gives
 * false, before the guest's state has changed in a way that Python would not change it again.
 *
 * Addresses are looked up in the page tables, not in what the library has cached of them, as Python does.
 */

#include "straight.h"

#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define AT(base, offset, type) (*(type *)((char *)(base) + (offset)))
#define RARELY(x) __builtin_expect(!!(x), 0)

enum { /* places in the library's register state */
    ENV_ESP = 32, ENV_EIP = 128, ENV_EFLAGS = 136, ENV_CC_SRC = 152, ENV_CC_OP = 168, ENV_DF = 172,
    ENV_HFLAGS = 176, ENV_SEGMENTS = 184, ENV_TR = 352, ENV_GDT = 376, ENV_IDT = 400, ENV_CR0 = 424,
    ENV_CR2 = 440, ENV_CR3 = 448, ENV_CR4 = 456, ENV_EFER = 592, ENV_ERROR_CODE = 5384, ENV_IS_INT = 5388,
    ENV_OLD_EXCEPTION = 5496, ENV_RETURN_ADDRESS = 5560,
};
enum { ES, CS, SS, DS };
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 8, HF_CS32 = 0x10, HF_SS32 = 0x20, HF_ADDSEG = 0x40 };
enum { TF = 0x100, IF = 0x200, IOPL = 0x3000, NT = 0x4000, RF = 0x10000, VM = 0x20000 };
enum { ARITHMETIC = 0x8d5, DIRECTION = 0x400, CC_OP_EFLAGS = 1 };
enum { PE = 1, WP = 0x10000, PSE = 0x10, PAE = 0x20, NXE = 0x800 };
enum { PTE_P = 1, PTE_RW = 2, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80 };
enum { DB = 1, BP = 3, OF = 4, DF = 8, TS = 10, NP = 11, STACK = 12, GP = 13, PF = 14, AC = 17 };
enum { LENGTH_OF_INT = 2, GATE_INTERRUPT = 14, GATE_TRAP = 15, KERNEL_RING = 1, USER_RING = 3 };
enum { ROM_START = 0xc0000, ROM_END = 0x100000, PAGE = 0x1000, HOLDS_CODE = 1 };

static const uint32_t PG = 0x80000000, PRESENT = 1 << 15, SEGMENT = 1 << 12, CODE = 1 << 11, ACCESSED = 1 << 8;
static const uint32_t CONFORMING = 1 << 10, BIG = 1 << 22, PAGES = 1 << 23;
static const uint32_t WITH_ERROR = 1 << DF | 1 << TS | 1 << NP | 1 << STACK | 1 << GP | 1 << PF | 1 << AC;
static const uint64_t FRAME = 0xfffffff000, UNUSED = 0x7ffULL << 52 | 0xfffULL << 40, NX = 1ULL << 63;

struct segment { /* as the library has one */
    uint32_t selector, unused;
    uint64_t base;
    uint32_t limit, flags;
};

static inline struct segment *segment(void *env, int number)
{
    return &AT(env, ENV_SEGMENTS + 24 * number, struct segment);
}

/* ---- memory ----------------------------------------------------------------------------------- */

static inline bool in_ram(const struct straight *s, uint64_t at, uint64_t size)
{
    return at <= s->ram_size - size;
}

/* The guest may be written to here as the CPU does it, and nobody needs to know. */
static inline bool plain(const struct straight *s, uint64_t at)
{
    return !(at >= ROM_START && at < ROM_END) && !(s->pages[at / PAGE] & HOLDS_CODE);
}

/* Set bits in an entry of a page table. */
static bool mark(struct straight *s, uint64_t at, uint32_t bits)
{
    uint32_t *entry = &AT(s->ram, at, uint32_t);

    if ((*entry & bits) == bits)
        return true;
    if (!plain(s, at))
        return false;
    *entry |= bits;
    return true;
}

/* The tables of 32-bit entries. */
static bool walk_narrow(struct straight *s, uint32_t linear, bool write, uint64_t *physical)
{
    uint64_t at = (AT(s->env, ENV_CR3, uint32_t) & ~0xfffu) + (linear >> 20 & 0xffc);
    uint32_t cr4 = AT(s->env, ENV_CR4, uint32_t), entry, rights;

    if (!in_ram(s, at, 4))
        return false;
    rights = entry = AT(s->ram, at, uint32_t);
    if (!(entry & PTE_P))
        return false;
    if (entry & PTE_PS && cr4 & PSE) {
        if (entry & 0x3fe000) /* beyond 4 GiB, or reserved */
            return false;
        *physical = (entry & 0xffc00000) | (linear & 0x3fffff);
    } else {
        uint64_t table = (entry & ~0xfffu) + (linear >> 10 & 0xffc);

        if (!in_ram(s, table, 4) || !mark(s, at, PTE_A))
            return false;
        at = table;
        entry = AT(s->ram, at, uint32_t);
        if (!(entry & PTE_P))
            return false;
        rights &= entry;
        *physical = (entry & ~0xfffu) | (linear & 0xfff);
    }
    if (write && !(rights & PTE_RW) && AT(s->env, ENV_CR0, uint32_t) & WP)
        return false;
    return mark(s, at, write ? PTE_A | PTE_D : PTE_A);
}

/* The tables of 64-bit entries (PAE). */
static bool walk_wide(struct straight *s, uint32_t linear, bool write, uint64_t *physical)
{
    uint64_t at = (AT(s->env, ENV_CR3, uint32_t) & ~31u) + 8 * (linear >> 30), entry, rights;
    uint64_t reserved = UNUSED | (AT(s->env, ENV_EFER, uint32_t) & NXE ? 0 : NX);

    if (!in_ram(s, at, 8))
        return false;
    entry = AT(s->ram, at, uint64_t);
    if (!(entry & PTE_P) || entry & (reserved | NX))
        return false;
    at = (entry & FRAME) + (linear >> 18 & 0xff8);
    if (!in_ram(s, at, 8))
        return false;
    rights = entry = AT(s->ram, at, uint64_t);
    if (!(entry & PTE_P) || entry & reserved)
        return false;
    if (entry & PTE_PS) {
        if (entry & 0x1fe000)
            return false;
        *physical = (entry & FRAME & ~0x1fffffULL) | (linear & 0x1fffff);
    } else {
        uint64_t table = (entry & FRAME) + (linear >> 9 & 0xff8);

        if (!in_ram(s, table, 8) || !mark(s, at, PTE_A))
            return false;
        at = table;
        entry = AT(s->ram, at, uint64_t);
        if (!(entry & PTE_P) || entry & reserved)
            return false;
        rights &= entry;
        *physical = (entry & FRAME) | (linear & 0xfff);
    }
    if (write && !(rights & PTE_RW) && AT(s->env, ENV_CR0, uint32_t) & WP)
        return false;
    return mark(s, at, write ? PTE_A | PTE_D : PTE_A);
}

/* Guest-physical address of some bytes for the kernel; false if they are not all on one page of RAM. */
static bool find(struct straight *s, uint32_t linear, uint32_t size, bool write, uint64_t *physical)
{
    if (linear % PAGE + size > PAGE || linear >= s->top)
        return false;
    if (!(AT(s->env, ENV_CR0, uint32_t) & PG))
        *physical = linear;
    else if (!(AT(s->env, ENV_CR4, uint32_t) & PAE ? walk_wide : walk_narrow)(s, linear, write, physical))
        return false;
    return in_ram(s, *physical, size);
}

static bool load(struct straight *s, uint32_t linear, uint32_t size, void *into)
{
    uint64_t at;

    if (!find(s, linear, size, false, &at))
        return false;
    memcpy(into, s->ram + at, size);
    return true;
}

/* ---- descriptors --------------------------------------------------------------------------------- */

struct descriptor {
    uint32_t low, high;
};

static inline uint32_t privilege(uint32_t high)
{
    return high >> 13 & 3;
}

static inline uint32_t base_of(const struct descriptor *from)
{
    return from->low >> 16 | (from->high & 0xff) << 16 | (from->high & 0xff000000);
}

/* Any descriptor of the GDT, as it is. */
static bool raw_descriptor(struct straight *s, uint32_t selector, struct descriptor *found)
{
    uint32_t base = AT(s->env, ENV_GDT + 8, uint32_t), limit = AT(s->env, ENV_GDT + 16, uint32_t);

    if (selector & 4 || !(selector & 0xfffc) || (selector & ~7u) + 7 > limit)
        return false;
    return load(s, base + (selector & ~7u), 8, found);
}

/* A descriptor of a segment that is there, as the guest wrote it: one that was raised shows ring 0. */
static bool descriptor(struct straight *s, uint32_t selector, struct descriptor *found)
{
    if (!raw_descriptor(s, selector, found))
        return false;
    if (s->compressed && found->high & SEGMENT && privilege(found->high) == KERNEL_RING)
        found->high &= ~0x6000u;
    return (found->high & (SEGMENT | PRESENT)) == (SEGMENT | PRESENT);
}

/* A segment register for a descriptor; the guest's ring 0 may be another one of the CPU's. */
static struct segment loaded(const struct straight *s, uint32_t selector, const struct descriptor *from)
{
    uint32_t ring = privilege(from->high), limit = (from->low & 0xffff) | (from->high & 0xf0000);

    if (ring < s->compressed)
        ring = s->compressed;
    return (struct segment){
        .selector = (selector & ~3u) | ring,
        .base = base_of(from),
        .limit = from->high & PAGES ? limit << 12 | 0xfff : limit,
        .flags = (from->high & ~0x6000u) | ring << 13 | ACCESSED,
    };
}

/* Stack for an inner ring: what the kernel gave, or what the TSS says. */
static bool inner_stack(struct straight *s, uint32_t ring, struct segment *stack, uint32_t *esp)
{
    uint32_t selector;
    struct descriptor found;

    if (s->compressed && !ring && s->kernel_ss && *s->kernel_ss & s->kernel_ss_given) {
        selector = *s->kernel_ss & 0xfffc;
        *esp = *s->kernel_esp;
    } else {
        struct segment *task = &AT(s->env, ENV_TR, struct segment);
        uint32_t type = task->flags >> 8 & 15, offset = 4 + 8 * ring;
        uint8_t data[6];

        if ((type != 9 && type != 11) || offset + 7 > task->limit)
            return false;
        if (!load(s, (uint32_t)task->base + offset, 6, data))
            return false;
        memcpy(esp, data, 4);
        selector = data[4] | (uint32_t)data[5] << 8;
        if (s->compressed && (selector & 3) == KERNEL_RING)
            selector &= ~3u;
    }
    if ((selector & 3) != ring || !descriptor(s, selector, &found))
        return false;
    if (privilege(found.high) != ring || (found.high & 0xa00) != 0x200)
        return false;
    *stack = loaded(s, selector, &found);
    return true;
}

/* ---- entry ----------------------------------------------------------------------------------------- */

static inline uint32_t shown(const struct straight *s, uint32_t selector)
{
    return s->compressed && (selector & 3) == KERNEL_RING ? (selector & ~3u) | s->shown_ring : selector;
}

static uint32_t frame_flags(const struct straight *s, bool running, uint32_t cpl)
{
    uint32_t flags = AT(s->env, ENV_EFLAGS, uint32_t);

    if (running) {
        flags = (flags & ~(uint32_t)(ARITHMETIC | DIRECTION)) | (AT(s->env, ENV_CC_SRC, uint32_t) & ARITHMETIC);
        flags |= AT(s->env, ENV_DF, int32_t) == 1 ? 0 : DIRECTION;
    }
    if (!s->compressed)
        return flags;
    flags &= ~(uint32_t)(IF | IOPL);
    return flags | (cpl == USER_RING || *s->interrupts & IF ? IF : 0) | (*s->iopl & IOPL);
}

static void settle_flags(struct straight *s, bool running, uint32_t flags, bool masks)
{
    void *env = s->env;

    if (s->compressed) {
        *s->interrupts = flags & IF && !masks ? IF : 0;
        flags = (flags & ~(uint32_t)IOPL) | IF;
    } else if (masks) {
        flags &= ~(uint32_t)IF;
    }
    if (running) {
        AT(env, ENV_CC_SRC, uint64_t) = flags & ARITHMETIC;
        AT(env, ENV_CC_OP, uint32_t) = CC_OP_EFLAGS;
        AT(env, ENV_DF, uint32_t) = flags & DIRECTION ? 0xffffffff : 1;
        flags &= ~(uint32_t)(ARITHMETIC | DIRECTION);
    }
    AT(env, ENV_EFLAGS, uint32_t) = flags | 2;
}

/*
 * Enter the handler of an event. error: the code that is pushed, negative for none.
 * running: in the middle of a run, when the arithmetic flags are elsewhere.
 */
static bool enter(struct straight *s, uint32_t vector, bool software, int64_t error, bool running)
{
    void *env = s->env;
    uint32_t hflags = AT(env, ENV_HFLAGS, uint32_t), real = hflags & HF_CPL;
    uint32_t cpl = real < s->compressed + 1 ? 0 : real, target, flags, esp, top, count = 0, frame[6];
    uint32_t base = s->compressed ? s->idt_base : AT(env, ENV_IDT + 8, uint32_t);
    uint32_t limit = s->compressed ? s->idt_limit : AT(env, ENV_IDT + 16, uint32_t);
    struct segment stack = *segment(env, SS), code;
    struct descriptor gate, found;
    uint64_t at;

    if (RARELY(!s->enters || !s->open_a20 || AT(env, ENV_EFLAGS, uint32_t) & VM))
        return false;
    if (RARELY(!(AT(env, ENV_CR0, uint32_t) & PE) || (running && AT(env, ENV_CC_OP, uint32_t) != CC_OP_EFLAGS)))
        return false;
    if (8 * vector + 7 > limit || !load(s, base + 8 * vector, 8, &gate))
        return false;
    if ((gate.high >> 8 & 31) != GATE_INTERRUPT && (gate.high >> 8 & 31) != GATE_TRAP)
        return false;
    if (!(gate.high & PRESENT) || (software && privilege(gate.high) < cpl))
        return false;
    if (!descriptor(s, gate.low >> 16, &found))
        return false;
    target = privilege(found.high);
    if ((found.high & (CODE | CONFORMING)) != CODE || target > cpl)
        return false;
    flags = frame_flags(s, running, real);
    esp = AT(env, ENV_ESP, uint32_t);
    if (error >= 0)
        frame[count++] = (uint32_t)error;
    frame[count++] = AT(env, ENV_EIP, uint32_t);
    frame[count++] = shown(s, segment(env, CS)->selector);
    frame[count++] = flags;
    if (target < cpl) {
        frame[count++] = esp;
        frame[count++] = shown(s, stack.selector);
        if (!inner_stack(s, target, &stack, &esp))
            return false;
    }
    top = esp - 4 * count;
    if (!(stack.flags & BIG) || top > UINT32_MAX - 4 * count + 1)
        return false;
    if (!find(s, (uint32_t)stack.base + top, 4 * count, true, &at) || !plain(s, at))
        return false;
    memcpy(s->ram + at, frame, 4 * count);
    code = loaded(s, gate.low >> 16, &found);
    settle_flags(s, running, flags & ~(uint32_t)(TF | NT | RF | VM), (gate.high >> 8 & 31) == GATE_INTERRUPT);
    stack.unused = segment(env, SS)->unused;
    code.unused = segment(env, CS)->unused;
    stack.base = (uint32_t)stack.base;
    *segment(env, SS) = stack;
    *segment(env, CS) = code;
    AT(env, ENV_ESP, uint32_t) = top;
    AT(env, ENV_EIP, uint32_t) = (gate.high & 0xffff0000) | (gate.low & 0xffff);
    hflags &= ~(uint32_t)(HF_CPL | HF_INHIBIT_IRQ | HF_CS32 | HF_SS32 | HF_ADDSEG);
    hflags |= privilege(stack.flags) | HF_SS32 | (code.flags & BIG ? HF_CS32 : 0);
    if (!(code.flags & BIG) || (uint32_t)(segment(env, ES)->base | stack.base | segment(env, DS)->base))
        hflags |= HF_ADDSEG;
    AT(env, ENV_HFLAGS, uint32_t) = hflags;
    return true;
}

/* ---- reports --------------------------------------------------------------------------------------- */

/* The instruction at EIP is one of the ROM's; true as well if that is not known. */
static bool in_rom(struct straight *s)
{
    uint32_t linear = (uint32_t)segment(s->env, CS)->base + AT(s->env, ENV_EIP, uint32_t);
    uint64_t at;

    return !find(s, linear, 1, false, &at) || (at >= s->rom_start && at < s->rom_end);
}

/* Python need not see an event first. */
static bool goes_straight(struct straight *s, uint32_t vector, bool software)
{
    uint32_t ring = AT(s->env, ENV_HFLAGS, uint32_t) & HF_CPL, asked = s->asked[ring];

    if (software)
        return asked != UINT32_MAX && vector != BP && vector != OF && vector != s->gate;
    if (vector > 31 || vector == DB || asked >> vector & 1)
        return false;
    if (vector == PF && (!s->pages_too || !AT(s->env, ENV_RETURN_ADDRESS, uint64_t)))
        return false; /* the tables are somebody's, or code can't be fetched */
    return !(s->compressed && ring == KERNEL_RING && s->asked_in_rom >> vector & 1 && in_rom(s));
}

/* Where the segments begin that the handler of page faults has. */
static bool handler_base(struct straight *s, uint32_t *base)
{
    struct descriptor found;
    uint32_t low;

    if (!load(s, s->idt_base + 8 * PF, 4, &low) || !raw_descriptor(s, low >> 16, &found))
        return false;
    *base = base_of(&found);
    return true;
}

/* A page fault is about to be delivered; false if that has to be left to Python. */
static bool page_fault_at(struct straight *s, uint32_t linear)
{
    uint32_t base = 0, page = linear & -(uint32_t)PAGE;

    if (s->compressed && !handler_base(s, &base))
        return false;
    *s->told_cr2 = linear;
    if (!s->compressed)
        return true;
    if (s->cr2)
        *s->cr2 = linear;
    s->flush_page(s->cpu, linear);
    if (s->uncached_word) {
        *s->uncached = page;
        *s->uncached_word = base % PAGE ? 0 : (page - base) | s->uncached_known;
    }
    return true;
}

bool straight_report(struct straight *s, uint32_t vector, uint64_t counter, uint64_t *budget)
{
    void *env = s->env;
    bool software = AT(env, ENV_IS_INT, uint32_t);
    int64_t error = -1;

    /* at the end of a run there may be more to it */
    if (!s->reports || counter >= *budget || !goes_straight(s, vector, software))
        return false;
    if (!software && vector == PF && !page_fault_at(s, AT(env, ENV_CR2, uint32_t)))
        return false;
    if (!software && WITH_ERROR >> vector & 1)
        error = AT(env, ENV_ERROR_CODE, uint32_t);
    if (!enter(s, vector, software, error, true))
        return false;
    AT(env, ENV_OLD_EXCEPTION, uint32_t) = UINT32_MAX;
    s->entered++;
    if (software)
        s->software++;
    else
        s->exceptions[vector]++;
    straight_spend(s, counter, budget);
    return true;
}

void straight_spend(struct straight *s, uint64_t counter, uint64_t *budget)
{
    int64_t left;

    s->idle += s->ns_event;
    left = s->run_ends - s->idle - (int64_t)(s->before + counter) * s->ns_each;
    left = left <= 0 ? 0 : (left + s->ns_each - 1) / s->ns_each;
    if (counter + (uint64_t)left < *budget)
        *budget = counter + (uint64_t)left;
}

int straight_gate(struct straight *s, uint32_t vector, uint64_t counter, uint64_t budget)
{
    void *env = s->env;
    uint64_t at;

    if (vector != s->gate || !s->called || !s->reports || !s->compressed || !s->enters || counter >= budget)
        return -1;
    if (!AT(env, ENV_IS_INT, uint32_t) || (AT(env, ENV_HFLAGS, uint32_t) & HF_CPL) != KERNEL_RING)
        return -1;
    if (!find(s, (uint32_t)segment(env, CS)->base + AT(env, ENV_EIP, uint32_t) - LENGTH_OF_INT, 1, false, &at))
        return -1;
    if (at < s->gates_start || at - s->gates_start >= (uint64_t)s->gate_size * s->gate_count)
        return -1;
    AT(env, ENV_OLD_EXCEPTION, uint32_t) = UINT32_MAX;
    return (int)((at - s->gates_start) / s->gate_size);
}

bool straight_cached(struct straight *s)
{
    if (!s->uncached_word)
        return false;
    *s->uncached_word = 0;
    *s->uncached = 1ULL << 32;
    return true;
}

/* ---- what Python calls ------------------------------------------------------------------------------- */

/* Bytes of the shared structure. */
EXPORT uint64_t vmi_straight_size(void)
{
    return sizeof(struct straight);
}

/* Enter the handler of an event that Python has counted; error: negative for none. */
EXPORT int vmi_straight_enter(struct straight *s, uint32_t vector, int software, int64_t error, int running)
{
    return enter(s, vector, software, error, running);
}
