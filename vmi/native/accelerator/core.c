// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C part of the CPU, optional: see vmi/native/accelerator/__init__.py.
 *
 * It replaces functions of the emulator library, whose pointers to them Python exchanges, and stands
 * between the library and all Python functions that are called while a guest runs.
 *
 * Counting. The library translates blocks of code. At the start of each it asks whether to leave; here that
 * question becomes inline code which takes the block's number of instructions from a cell ("left"), and asks
 * only when that goes below zero: then the run ends, or a shorter block, made of just as many instructions
 * as are left, is executed instead. A block that is left in the middle by a fault gives back what it has
 * not begun. The same question behind each load and store is not asked at all.
 *
 * Asking Python. Whatever Python is asked in the middle of an instruction may look at all of the CPU's state
 * and may end the run behind this instruction. So the instruction has to be the last of its block: if it is
 * not, nothing is asked yet, and the instruction is done again in a block of its own.
 *
 * What differs. A run is the same with this and without, but for how far the library looks ahead of what is
 * executed: its blocks are longer here where code is straight for some hundred instructions, and the page that
 * such code runs towards is marked as accessed when the block is translated. And a string move from a device
 * into the block of code that it is in reads the device once here; without this it may do so twice.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "flags.h"
#include "straight.h"

#define EXPORT __attribute__((visibility("default")))
#define RARELY(x) __builtin_expect(!!(x), 0)
#define NORETURN __attribute__((noreturn))
/* where the code of a block called from, as the library itself has it */
#define BACK ((uintptr_t)__builtin_return_address(0))

/* Places in the library's structures. Python checks that the library is the build that has them so. */
enum {
    ENGINE_CPU = 440,
    ENGINE_CONTEXT = 768,
    CPU_NEXT_BLOCK = 24,
    CPU_INTERRUPT_REQUEST = 28,
    CPU_LEFT = 40,      /* a counter of the library's own that it doesn't use */
    CPU_CORE = 33136,   /* left to whoever has opened the engine */
    CPU_ACCESS_BACK = 33144,
    CPU_ENV = 35408,    /* the register state is part of the CPU */
    ENV_EAX = 0,
    ENV_EDX = 16,
    ENV_EIP = 128,
    ENV_EFLAGS = 136,
    ENV_CC_SRC = 152,
    ENV_CC_OP = 168,
    ENV_HFLAGS = 176,
    ENV_CR4 = 456,
    CONTEXT_TEMPS = 48, /* temporaries in use */
    CONTEXT_OPS = 56,   /* operations made */
    CONTEXT_ENV = 39152,
    CONTEXT_ENGINE = 39280,
    OP_ARGS = 24,
};

enum { WRITABLE = 2, CC_OP_EFLAGS = 1, IF_BIT = 0x200, HF_CPL = 3, HF_INHIBIT_IRQ = 8, CR4_TSD = 4, TYPE_I64 = 1, COND_GE = 3 };
/*
 * The library has room for 512 temporaries in a block, doesn't look whether that is enough, and loses some
 * with many an instruction. By itself it ends a block only at so many operations.
 */
enum { MOST_TEMPS = 400, MOST_OPS = 4000, MOST_INSTRUCTIONS = 128 };
enum { PAGE_BITS = 12, SVM_PAUSE = 0x77, LENGTH_OF_CALL = 2 };
enum { CR0_PE = 1, CR0_NW = 1 << 29, CR0_CD = 1 << 30 };
#define CR0_PG (UINT64_C(1) << 31)
/* how a block is translated: as so many instructions, and by a mark that the library has no use for, cut here */
enum { CFLAGS_COUNT = 0x7fff, CFLAGS_CUT = 0x8000 };
/* what is known of a page of RAM */
enum { PAGE_HOLDS_CODE = 1, PAGE_IS_WATCHED = 2 };

#define AT(base, offset, type) (*(type *)((char *)(base) + (offset)))

struct block { /* the library's description of a translated block */
    uint64_t pc;
    uint64_t cs_base;
    uint32_t flags;
    uint16_t size;
    uint16_t count; /* instructions */
    uint32_t cflags;
    uint32_t trace;
    uint8_t *code;
    size_t code_size;
};

struct core {
    uint64_t size;     /* of this structure, as Python has it */
    uint64_t counter;  /* instructions begun in this run, as Python callbacks see it */
    uint64_t budget;   /* instructions that this run may begin */
    void *engine;      /* the library's structures */
    void *cpu;
    void *env;
    uint8_t *pages;    /* of RAM, by number */
    uint64_t page_count;
    void *ram;
    uint64_t hidden_from; /* linear addresses from here on show nothing */
    uint64_t nowhere;     /* physical address that nothing answers */
    uint64_t uncached;    /* linear address of a page to tell Python of */
    uint32_t running;
    uint32_t inside;      /* Python functions that are in progress */
    uint32_t window;      /* interrupts became acceptable */
    uint32_t tells_of_pauses;
    uint32_t tells_of_blocks;
    uint32_t tells_of_control;
    uint32_t op_movi, op_ld, op_st, op_add, op_set_label; /* the library's numbers */
    struct flag_operations flag_operations;
    uint32_t tsc_steady;  /* the time stamp counter counts instructions as long as Python is asked nothing */
    uint32_t tsc_known;
    uint64_t tsc_origin;  /* what it was when this run began, if it is known */
    uint32_t walking;     /* a page walk is in progress */
    uint64_t walk_back;   /* and was asked for here */
    uint64_t last_back;   /* where the state was last restored to */
    uint64_t store_back;  /* where the store into code in progress is */
    char *charge;         /* the operation that has the number of instructions of the block in the making */
    uint32_t counts;      /* that block has been given its counting code */
    uint32_t breaks;      /* that block ends in front of a breakpoint */
    uint32_t cut;         /* that block is a part of one */
    struct straight *straight; /* what of events need not be asked */

    uint32_t (*port_read)(void *engine, uint32_t port, int size, void *user);
    void (*port_write)(void *engine, uint32_t port, int size, uint32_t value, void *user);
    int (*cpuid)(void *engine, void *user);
    int (*rdtsc)(void *engine, void *user);
    void (*interrupt)(void *engine, uint32_t vector, void *user);
    bool (*invalid)(void *engine, void *user);
    bool (*rom_write)(void *engine, int kind, uint64_t address, int size, int64_t value, void *user);
    void (*breakpoint)(void *cpu);
    uint64_t (*memory_read)(uint64_t address, uint32_t size);
    void (*memory_write)(uint64_t address, uint32_t size, uint64_t value);
    void (*read_msr)(void);
    void (*write_msr)(void);
    void (*fast_call)(void);
    void (*long_call)(void);
    void (*control_loaded)(void);
    void (*cached)(void);
    void (*paused)(void);
    void (*storing)(uint64_t address, uint64_t size);
    void (*block_appeared)(uint64_t linear, uint32_t size);
    bool (*load_control)(int number, uint32_t value);
};

struct region { /* of device memory: what the library hands to its callbacks */
    struct core *core;
    uint64_t start;
};

/* ---- the library's functions ---------------------------------------------------------------- */

static int (*emu_start)(void *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
static int (*emu_stop)(void *engine);
static struct block *(*tb_lookup)(void *context, uintptr_t host);
static char *(*emit_op)(void *context, uint32_t opcode);
static char *(*new_temp)(void *context, int type, bool local);
static void (*free_temp)(void *context, char *temp);
static void (*gen_op1)(void *context, uint32_t opcode, uintptr_t a);
static void (*gen_op3)(void *context, uint32_t opcode, uintptr_t a, uintptr_t b, uintptr_t c);
static void (*gen_brcondi)(void *context, int condition, uintptr_t temp, int64_t value, void *label);
static void *(*new_label)(void *context);
static uintptr_t (*const_i32)(void *context, int32_t value);
static uintptr_t (*const_i64)(void *context, int64_t value);
static uint32_t (*compute_flags)(void *env, int op);
static void (*set_dirty)(void *cpu, uint64_t linear);
static void (*reset_dirty)(void *cpu, uint64_t host, uint64_t size);

static const struct {
    const char *name;
    void *variable;
} imports[] = {
    {"uc_emu_start", &emu_start},
    {"uc_emu_stop", &emu_stop},
    {"tcg_tb_lookup_x86_64", &tb_lookup},
    {"tcg_emit_op_x86_64", &emit_op},
    {"tcg_temp_new_internal_x86_64", &new_temp},
    {"tcg_temp_free_internal_x86_64", &free_temp},
    {"tcg_gen_op1_x86_64", &gen_op1},
    {"tcg_gen_op3_x86_64", &gen_op3},
    {"tcg_gen_brcondi_i64_x86_64", &gen_brcondi},
    {"gen_new_label_x86_64", &new_label},
    {"tcg_const_i32_x86_64", &const_i32},
    {"tcg_const_i64_x86_64", &const_i64},
    {"cpu_cc_compute_all_x86_64", &compute_flags},
    {"tlb_set_dirty_x86_64", &set_dirty},
    {"tlb_reset_dirty_x86_64", &reset_dirty},
};

/* ---- whose is it ---------------------------------------------------------------------------- */

static inline struct core *core_of_cpu(void *cpu)
{
    return cpu ? AT(cpu, CPU_CORE, struct core *) : NULL;
}

static inline struct core *core_of_engine(void *engine)
{
    return core_of_cpu(AT(engine, ENGINE_CPU, void *));
}

static inline struct core *core_of_env(void *env)
{
    return core_of_cpu((char *)env - CPU_ENV);
}

static inline int64_t *left_of(struct core *core)
{
    return &AT(core->cpu, CPU_LEFT, int64_t);
}

/* ---- Python ------------------------------------------------------------------------------- */

/* Python is about to be called: let it see how many instructions have begun. */
static void show(struct core *core)
{
    if (!core->inside++ && core->running)
        core->counter = core->budget - (uint64_t)*left_of(core);
}

/* Python has come back: it may have taken an instruction back, or cut the budget. */
static void take(struct core *core)
{
    core->tsc_known = 0;
    if (!--core->inside && core->running)
        *left_of(core) = (int64_t)(core->budget - core->counter);
}

/* ---- where in a block ----------------------------------------------------------------------- */

static void (*loop_exit_noexc)(void *cpu) NORETURN;
static bool (*restore_state)(void *cpu, uintptr_t back, bool will_exit);

static uint64_t read_sleb128(uint8_t **at)
{
    uint64_t value = 0;
    int shift = 0;
    uint8_t byte;

    do {
        byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    if (shift < 64 && byte & 0x40)
        value |= ~(uint64_t)0 << shift;
    return value;
}

static struct block *block_at(struct core *core, uintptr_t back)
{
    return back ? tb_lookup(AT(core->engine, ENGINE_CONTEXT, void *), back - LENGTH_OF_CALL) : NULL;
}

/*
 * Number of the instruction in its block that called from somewhere. Behind the code of a block is a table
 * of its instructions: address, form of the flags, and end in the code, each as difference to the one before.
 */
static int index_in(const struct block *block, uintptr_t back)
{
    uint8_t *table = block->code + block->code_size;
    uintptr_t end = (uintptr_t)block->code;

    for (int i = 0; i < block->count; i++) {
        read_sleb128(&table);
        read_sleb128(&table);
        end += read_sleb128(&table);
        if (end > back - LENGTH_OF_CALL)
            return i;
    }
    return block->count - 1;
}

/*
 * See to it that the instruction which calls from somewhere is the last of its block, and that the state is
 * that in front of it; comes back only then. Nothing is to be seen to of what doesn't belong to a block.
 */
static void alone(struct core *core, uintptr_t back)
{
    struct block *block;
    int left;

    if (!core->running || core->inside)
        return;
    block = block_at(core, back);
    if (!block)
        return;
    left = block->count - index_in(block, back);
    restore_state(core->cpu, back, false);
    if (left <= 1)
        return;
    *left_of(core) += left;
    core->walking = 0;
    AT(core->cpu, CPU_NEXT_BLOCK, uint32_t) = CFLAGS_CUT | 1;
    loop_exit_noexc(core->cpu);
}

/* ---- counting ------------------------------------------------------------------------------- */

static void (*call_n)(void *context, void *function, char *result, int count, char **args);
static void (*translate)(void *cpu, struct block *block, int most);
static void (*check_exit_request)(void *engine, uint32_t delayed);
static void *debug_helper;
static void *compute_all_helper;
static void *reset_rf_helper;

/* A block has begun with fewer instructions left than it has. */
static void NORETURN expired(struct core *core, uintptr_t back)
{
    struct block *block = block_at(core, back);
    int64_t left = *left_of(core) += block->count;

    AT(core->env, ENV_EIP, uint64_t) = block->pc - block->cs_base;
    if (left > 0)
        AT(core->cpu, CPU_NEXT_BLOCK, uint32_t) = CFLAGS_CUT | (uint32_t)left;
    else
        emu_stop(core->engine);
    loop_exit_noexc(core->cpu);
}

static void on_check_exit_request(void *engine, uint32_t delayed)
{
    struct core *core = core_of_engine(engine);

    if (core)
        expired(core, BACK);
    check_exit_request(engine, delayed); /* a jump: it looks at where it was called from */
}

static void gen_counting(struct core *core, void *context)
{
    char *left = new_temp(context, TYPE_I64, false), *number = new_temp(context, TYPE_I64, false);
    uintptr_t env = (uintptr_t)context + AT(context, CONTEXT_ENV, uintptr_t);
    void *label;
    char *args[2];

    gen_op3(context, core->op_ld, (uintptr_t)left, env, (uintptr_t)(intptr_t)(CPU_LEFT - CPU_ENV));
    core->charge = emit_op(context, core->op_movi);
    AT(core->charge, OP_ARGS, uintptr_t) = (uintptr_t)number;
    AT(core->charge, OP_ARGS + 8, uintptr_t) = 0;
    gen_op3(context, core->op_add, (uintptr_t)left, (uintptr_t)left, (uintptr_t)number);
    gen_op3(context, core->op_st, (uintptr_t)left, env, (uintptr_t)(intptr_t)(CPU_LEFT - CPU_ENV));
    label = new_label(context);
    gen_brcondi(context, COND_GE, (uintptr_t)left - (uintptr_t)context, 0, label);
    free_temp(context, left);
    free_temp(context, number);
    /* a branch ends the life of all temporaries, those for the call too */
    args[0] = (char *)context + const_i64(context, (intptr_t)core->engine);
    args[1] = (char *)context + const_i32(context, 0);
    call_n(context, on_check_exit_request, NULL, 2, args);
    free_temp(context, args[0]);
    free_temp(context, args[1]);
    *(uint16_t *)label |= 1; /* it is present */
    gen_op1(context, core->op_set_label, (uintptr_t)label);
}

/*
 * An engine that was there before us knows its helpers by what they were then. Those made since are listed;
 * what is freed and made again is listed again.
 */
static void (*init_context)(void *context);
static void **contexts;
static size_t context_count;
static void *known(void *context, void *function);

static void on_init_context(void *context)
{
    void **more = realloc(contexts, (context_count + 1) * sizeof *contexts);

    if (more) {
        contexts = more;
        contexts[context_count++] = context;
    }
    init_context(context);
}

static void on_call_n(void *context, void *function, char *result, int count, char **args)
{
    struct core *core = core_of_engine(AT(context, CONTEXT_ENGINE, void *));

    if (core) {
        if (function == (void *)on_check_exit_request) {
            if (!core->counts) {
                core->counts = 1;
                gen_counting(core, context);
            }
            if (RARELY(AT(context, CONTEXT_TEMPS, int) > MOST_TEMPS))
                AT(context, CONTEXT_OPS, int) = MOST_OPS;
            return;
        }
        if (function == debug_helper)
            core->breaks = 1;
        /* the resume flag lasts to the end of a block, and this is none */
        if (function == reset_rf_helper && core->cut)
            return;
    } else {
        function = known(context, function);
    }
    call_n(context, function, result, count, args);
    if (RARELY(core && AT(context, CONTEXT_TEMPS, int) > MOST_TEMPS))
        AT(context, CONTEXT_OPS, int) = MOST_OPS;
}

static void on_translate(void *cpu, struct block *block, int most)
{
    struct core *core = core_of_cpu(cpu);

    if (!core) {
        translate(cpu, block, most);
        return;
    }
    core->counts = core->breaks = 0;
    core->cut = block->cflags & CFLAGS_CUT;
    core->charge = NULL;
    translate(cpu, block, most < MOST_INSTRUCTIONS ? most : MOST_INSTRUCTIONS);
    /* the library counts the instruction that a breakpoint is in front of, which is not executed */
    block->count -= (uint16_t)core->breaks;
    flags_first(AT(core->engine, ENGINE_CONTEXT, void *), &core->flag_operations, compute_all_helper);
    if (core->charge)
        AT(core->charge, OP_ARGS + 8, uintptr_t) = (uintptr_t)(-(intptr_t)block->count);
}

static bool on_restore_state(void *cpu, uintptr_t back, bool will_exit)
{
    struct core *core = core_of_cpu(cpu);

    if (core && core->running && !core->inside) {
        core->last_back = back;
        if (will_exit) {
            struct block *block = block_at(core, back);

            if (block)
                *left_of(core) += block->count - (index_in(block, back) + 1);
        }
    }
    return restore_state(cpu, back, will_exit);
}

static void on_loop_exit_noexc(void *cpu)
{
    struct core *core = core_of_cpu(cpu);

    if (core && core->store_back) {
        /* the store was into its own block, and is done again from the start, alone */
        struct block *block = block_at(core, core->store_back);

        if (block)
            *left_of(core) += block->count - index_in(block, core->store_back);
        core->store_back = 0;
    }
    loop_exit_noexc(cpu);
}

/* ---- pages that hold code, and translations of addresses -------------------------------------- */

static void (*set_page)(void *cpu, uint64_t linear, uint64_t physical, uint32_t attributes, int access,
                        int mode, uint64_t size);
static void (*protect)(void *engine, uint64_t ram);
static void (*unprotect)(void *engine, uint64_t ram);
static void *(*lock)(void *engine, uint64_t start, uint64_t end);
static void (*unlock)(void *pages);
static void (*invalidate_fast)(void *engine, void *pages, uint64_t start, int size, uintptr_t back);
static void (*reset_dirty_by_linear)(void *cpu, uint64_t start, uint64_t size);
static bool (*fill)(void *cpu, uint64_t address, int size, int access, int mode, bool probe, uintptr_t back);
static void (*insert)(void *context, struct block *block);

static char no_pages; /* stands for the library's list of pages, which serves only to lock them */

static void on_set_page(void *cpu, uint64_t linear, uint64_t physical, uint32_t attributes, int access,
                        int mode, uint64_t size)
{
    struct core *core = core_of_cpu(cpu);
    uint64_t page;

    if (core) {
        /* what a segment's base and an offset add up to may pass 4 GiB here */
        if (RARELY((uint32_t)linear >= core->hidden_from))
            physical = core->nowhere;
        if (RARELY(!(((uint32_t)linear ^ core->uncached) & -size))) {
            if (!straight_cached(core->straight)) {
                show(core);
                core->cached();
                take(core);
            }
        }
    }
    set_page(cpu, linear, physical, attributes, access, mode, size);
    if (core && access & WRITABLE) {
        page = physical >> PAGE_BITS;
        if (page >= core->page_count || !core->pages[page])
            set_dirty(cpu, linear); /* has no effect on ROM and devices */
    }
}

static void on_set_dirty(void *cpu, uint64_t linear)
{
    /*
     * The library asks for this behind the first store through a mapping that can't be executed, and would
     * miss the next one into code there. Pages without code have had it above.
     */
    if (!core_of_cpu(cpu))
        set_dirty(cpu, linear);
}

static void on_protect(void *engine, uint64_t ram)
{
    struct core *core = core_of_engine(engine);
    uint64_t page = ram >> PAGE_BITS;

    if (!core) {
        protect(engine, ram);
    } else if (page < core->page_count) {
        core->pages[page] |= PAGE_HOLDS_CODE;
        reset_dirty(core->cpu, (uintptr_t)core->ram + (page << PAGE_BITS), 1 << PAGE_BITS);
    }
}

static void on_unprotect(void *engine, uint64_t ram)
{
    struct core *core = core_of_engine(engine);

    if (!core)
        unprotect(engine, ram);
    else if (ram >> PAGE_BITS < core->page_count)
        core->pages[ram >> PAGE_BITS] &= (uint8_t)~PAGE_HOLDS_CODE;
}

static void on_reset_dirty_by_linear(void *cpu, uint64_t start, uint64_t size)
{
    /* each block asks for its own pages, which have had it above */
    if (!core_of_cpu(cpu))
        reset_dirty_by_linear(cpu, start, size);
}

static void *on_lock(void *engine, uint64_t start, uint64_t end)
{
    return core_of_engine(engine) ? &no_pages : lock(engine, start, end);
}

static void on_unlock(void *pages)
{
    if (pages != &no_pages)
        unlock(pages);
}

static void on_invalidate_fast(void *engine, void *pages, uint64_t start, int size, uintptr_t back)
{
    struct core *core = core_of_engine(engine);

    if (!core) {
        invalidate_fast(engine, pages, start, size, back);
        return;
    }
    if (start >> PAGE_BITS < core->page_count && core->pages[start >> PAGE_BITS] & PAGE_IS_WATCHED) {
        alone(core, back);
        show(core);
        core->storing(start, (uint64_t)size);
        take(core);
    }
    core->store_back = core->running && !core->inside ? back : 0;
    invalidate_fast(engine, pages, start, size, back);
    core->store_back = 0;
}

static bool on_fill(void *cpu, uint64_t address, int size, int access, int mode, bool probe, uintptr_t back)
{
    struct core *core = core_of_cpu(cpu);
    bool found;

    if (!core)
        return fill(cpu, address, size, access, mode, probe, back);
    core->walking = 1;
    core->walk_back = back;
    found = fill(cpu, address, size, access, mode, probe, back);
    core->walking = 0;
    return found;
}

static void on_insert(void *context, struct block *block)
{
    struct core *core = core_of_engine(AT(context, CONTEXT_ENGINE, void *));

    insert(context, block);
    /* what a block of a given length has was in the one that it is a part of */
    if (core && core->tells_of_blocks && !(block->cflags & CFLAGS_COUNT)) {
        show(core);
        core->block_appeared(block->pc, block->size);
        take(core);
    }
}

/* ---- instructions --------------------------------------------------------------------------- */

static void (*check_intercept)(void *env, uint32_t kind, uint64_t parameter, uintptr_t back);
static void (*helper_into)(void *env, int length);
static void (*helper_rdpmc)(void *env);
static void (*helper_rdmsr)(void *env);
static void (*helper_rdtsc)(void *env);
static void (*helper_wrmsr)(void *env);
static void (*helper_write_crN)(void *env, int number, uint64_t value);
static void (*helper_sysenter)(void *env, int length);
static void (*helper_syscall)(void *env, int length);
static void (*update_cr0)(void *env, uint32_t value);
static void (*update_cr3)(void *env, uint64_t value);
static void (*update_cr4)(void *env, uint32_t value);
static uint64_t (*inb)(void *env, uint32_t port);
static uint64_t (*inw)(void *env, uint32_t port);
static uint64_t (*inl)(void *env, uint32_t port);
static void (*outb)(void *env, uint32_t port, uint32_t value);
static void (*outw)(void *env, uint32_t port, uint32_t value);
static void (*outl)(void *env, uint32_t port, uint32_t value);

static uint64_t port_read(struct core *core, uint32_t port, int size, uintptr_t back)
{
    uint32_t value;

    alone(core, back);
    show(core);
    value = core->port_read(core->engine, port, size, NULL);
    take(core);
    return size == 4 ? value : value & ((1u << 8 * size) - 1);
}

static void port_write(struct core *core, uint32_t port, int size, uint32_t value, uintptr_t back)
{
    alone(core, back);
    show(core);
    core->port_write(core->engine, port, size, size == 4 ? value : value & ((1u << 8 * size) - 1), NULL);
    take(core);
}

#define IN(name, size)                                                                                         \
    static uint64_t on_##name(void *env, uint32_t port)                                                        \
    {                                                                                                          \
        struct core *core = core_of_env(env);                                                                  \
                                                                                                               \
        if (core)                                                                                              \
            return port_read(core, port, size, BACK);                                                          \
        return name(env, port);                                                                                \
    }
#define OUT(name, size)                                                                                        \
    static void on_##name(void *env, uint32_t port, uint32_t value)                                            \
    {                                                                                                          \
        struct core *core = core_of_env(env);                                                                  \
                                                                                                               \
        if (core)                                                                                              \
            port_write(core, port, size, value, BACK);                                                         \
        else                                                                                                   \
            name(env, port, value);                                                                            \
    }

IN(inb, 1)
IN(inw, 2)
IN(inl, 4)
OUT(outb, 1)
OUT(outw, 2)
OUT(outl, 4)

/* A function that Python does for our CPUs. */
#define ASKED(name, arguments, values, function)                                                               \
    static void on_##name arguments                                                                            \
    {                                                                                                          \
        struct core *core = core_of_env(env);                                                                  \
                                                                                                               \
        if (!core) {                                                                                           \
            name values;                                                                                       \
            return;                                                                                            \
        }                                                                                                      \
        alone(core, BACK);                                                                                     \
        show(core);                                                                                            \
        core->function();                                                                                      \
        take(core);                                                                                            \
    }

ASKED(helper_rdmsr, (void *env), (env), read_msr)
ASKED(helper_wrmsr, (void *env), (env), write_msr)
ASKED(helper_sysenter, (void *env, int length), (env, length), fast_call)
ASKED(helper_syscall, (void *env, int length), (env, length), long_call)

/* Whether MOV to a control register loads the value is Python's to say where there is a doubt. */
static void on_helper_write_crN(void *env, int number, uint64_t value)
{
    struct core *core = core_of_env(env);
    bool paged = (value & (CR0_PG | CR0_PE)) == CR0_PG, uncached = (value & (CR0_NW | CR0_CD)) == CR0_NW;

    if (core && (number == 4 || (number == 0 && (paged || uncached)))) {
        bool taken;

        alone(core, BACK);
        show(core);
        taken = core->load_control(number, (uint32_t)value);
        take(core);
        if (!taken)
            return;
    }
    helper_write_crN(env, number, value);
}

/* INTO and RDPMC raise exceptions without saying where, and so without giving anything back. */
static void on_helper_into(void *env, int length)
{
    struct core *core = core_of_env(env);

    if (core)
        alone(core, BACK);
    helper_into(env, length);
}

static void on_helper_rdpmc(void *env)
{
    struct core *core = core_of_env(env);

    if (core)
        alone(core, BACK);
    helper_rdpmc(env);
}

/* Asked over and over by guests that wait, so done without Python if what it would say is known. */
static void on_helper_rdtsc(void *env)
{
    struct core *core = core_of_env(env);
    uint64_t value;
    struct block *block;
    bool refused = AT(env, ENV_CR4, uint64_t) & CR4_TSD && AT(env, ENV_HFLAGS, uint32_t) & HF_CPL;

    if (!core || !core->tsc_known || refused || !(block = block_at(core, BACK))) {
        helper_rdtsc(env);
        return;
    }
    value = core->budget - (uint64_t)*left_of(core) - (uint64_t)(block->count - index_in(block, BACK) - 1);
    value += core->tsc_origin;
    AT(env, ENV_EAX, uint64_t) = (uint32_t)value;
    AT(env, ENV_EDX, uint64_t) = value >> 32;
}

static void control_loaded(void *env)
{
    struct core *core = core_of_env(env);

    if (core && core->tells_of_control) {
        show(core);
        core->control_loaded();
        take(core);
    }
}

static void on_update_cr0(void *env, uint32_t value)
{
    update_cr0(env, value);
    control_loaded(env);
}

static void on_update_cr3(void *env, uint64_t value)
{
    update_cr3(env, value);
    control_loaded(env);
}

static void on_update_cr4(void *env, uint32_t value)
{
    update_cr4(env, value);
    control_loaded(env);
}

/*
 * Asked by some instructions for a hypervisor of the guest's own, which there never is. PAUSE does so
 * before it leaves the library's main loop in a way that can't be done from Python.
 */
static void on_check_intercept(void *env, uint32_t kind, uint64_t parameter, uintptr_t back)
{
    struct core *core = core_of_env(env);

    if (!core) {
        check_intercept(env, kind, parameter, back);
    } else if (kind == SVM_PAUSE && core->tells_of_pauses) {
        show(core);
        core->paused();
        take(core);
    }
}

/* No time passes for the library, so that a run depends on its input alone. */
static int (*time_of_day)(void *result, void *zone);

static int on_time_of_day(uint64_t *result, void *zone)
{
    (void)zone;
    result[0] = result[1] = 0;
    return 0;
}

/* ---- callbacks that the library offers -------------------------------------------------------- */

/* The library's main loop reports an exception. The flags are brought into the form that Python knows. */
static void on_interrupt(void *engine, uint32_t vector, struct core *core)
{
    void *env = core->env;
    int op = AT(env, ENV_CC_OP, int);
    uint64_t counter;
    int gate;

    core->walking = 0;
    if (op != CC_OP_EFLAGS) {
        AT(env, ENV_CC_SRC, uint64_t) = compute_flags(env, op);
        AT(env, ENV_CC_OP, int) = CC_OP_EFLAGS;
    }
    counter = core->budget - (uint64_t)*left_of(core);
    if (straight_report(core->straight, vector, counter, &core->budget)) {
        *left_of(core) = (int64_t)(core->budget - counter);
        core->tsc_origin += (uint64_t)(core->straight->ns_event / core->straight->ns_each);
        if (core->budget == counter)
            emu_stop(engine);
        return;
    }
    gate = straight_gate(core->straight, vector, counter, core->budget);
    if (gate >= 0) {
        bool served;

        show(core);
        served = core->straight->called((uint32_t)gate);
        if (served)
            straight_spend(core->straight, core->counter, &core->budget);
        take(core);
        if (served && core->budget == core->counter)
            emu_stop(engine);
        if (served)
            return;
    }
    show(core);
    core->interrupt(engine, vector, NULL);
    take(core);
}

static bool on_invalid(void *engine, struct core *core)
{
    bool handled;

    show(core);
    handled = core->invalid(engine, NULL);
    take(core);
    return handled;
}

static int on_cpuid(void *engine, struct core *core)
{
    int handled;

    alone(core, core->last_back);
    show(core);
    handled = core->cpuid(engine, NULL);
    take(core);
    return handled;
}

static int on_rdtsc(void *engine, struct core *core)
{
    int handled;

    alone(core, core->last_back);
    show(core);
    handled = core->rdtsc(engine, NULL);
    take(core);
    core->tsc_known = core->tsc_steady && core->running;
    core->tsc_origin = (AT(core->env, ENV_EAX, uint32_t) | AT(core->env, ENV_EDX, uint64_t) << 32) - core->counter;
    return handled;
}

static bool on_rom_write(void *engine, int kind, uint64_t address, int size, int64_t value, struct core *core)
{
    bool handled;

    alone(core, core->last_back);
    show(core);
    handled = core->rom_write(engine, kind, address, size, value, NULL);
    take(core);
    return handled;
}

static void before_device(struct core *core)
{
    /* what a page walk reads may be a device too; the last access was another one then */
    alone(core, core->walking ? core->walk_back : AT(core->cpu, CPU_ACCESS_BACK, uintptr_t));
    show(core);
}

static uint64_t on_memory_read(void *engine, uint64_t offset, unsigned size, struct region *region)
{
    struct core *core = region->core;
    uint64_t value;

    (void)engine;
    before_device(core);
    value = core->memory_read(region->start + offset, size);
    take(core);
    return value;
}

static void on_memory_write(void *engine, uint64_t offset, unsigned size, uint64_t value, struct region *region)
{
    struct core *core = region->core;

    (void)engine;
    before_device(core);
    core->memory_write(region->start + offset, size, value);
    take(core);
}

/* Instead of the library's delivery of interrupts. */
static bool on_window(void *cpu, int request)
{
    struct core *core = core_of_cpu(cpu);
    void *env = core->env;

    (void)request;
    if (AT(env, ENV_EFLAGS, uint64_t) & IF_BIT && !(AT(env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ)) {
        AT(cpu, CPU_INTERRUPT_REQUEST, uint32_t) = 0;
        core->window = 1;
        emu_stop(core->engine);
    }
    return false;
}

static void on_breakpoint(void *cpu)
{
    struct core *core = core_of_cpu(cpu);

    show(core);
    core->breakpoint(cpu);
    take(core);
}

/* ---- what Python calls ------------------------------------------------------------------------ */

static const struct {
    const char *name;
    void *replacement;
    void *original;
} replaced[] = {
    {"tlb_set_page_with_attrs_x86_64", on_set_page, &set_page},
    {"tlb_set_dirty_x86_64", on_set_dirty, &set_dirty},
    {"tlb_protect_code_x86_64", on_protect, &protect},
    {"tlb_unprotect_code_x86_64", on_unprotect, &unprotect},
    {"tlb_reset_dirty_by_vaddr_x86_64", on_reset_dirty_by_linear, &reset_dirty_by_linear},
    {"page_collection_lock_x86_64", on_lock, &lock},
    {"page_collection_unlock_x86_64", on_unlock, &unlock},
    {"tb_invalidate_phys_page_fast_x86_64", on_invalidate_fast, &invalidate_fast},
    {"x86_cpu_tlb_fill_x86_64", on_fill, &fill},
    {"tcg_tb_insert_x86_64", on_insert, &insert},
    {"tcg_gen_callN_x86_64", on_call_n, &call_n},
    {"tcg_context_init_x86_64", on_init_context, &init_context},
    {"gen_intermediate_code_x86_64", on_translate, &translate},
    {"helper_check_exit_request_x86_64", on_check_exit_request, &check_exit_request},
    {"cpu_restore_state_x86_64", on_restore_state, &restore_state},
    {"cpu_loop_exit_noexc_x86_64", on_loop_exit_noexc, &loop_exit_noexc},
    {"cpu_svm_check_intercept_param_x86_64", on_check_intercept, &check_intercept},
    {"cpu_x86_update_cr0_x86_64", on_update_cr0, &update_cr0},
    {"cpu_x86_update_cr3_x86_64", on_update_cr3, &update_cr3},
    {"cpu_x86_update_cr4_x86_64", on_update_cr4, &update_cr4},
    {"helper_into_x86_64", on_helper_into, &helper_into},
    {"helper_rdpmc_x86_64", on_helper_rdpmc, &helper_rdpmc},
    {"helper_rdtsc_x86_64", on_helper_rdtsc, &helper_rdtsc},
    {"helper_rdmsr_x86_64", on_helper_rdmsr, &helper_rdmsr},
    {"helper_wrmsr_x86_64", on_helper_wrmsr, &helper_wrmsr},
    {"helper_write_crN_x86_64", on_helper_write_crN, &helper_write_crN},
    {"helper_sysenter_x86_64", on_helper_sysenter, &helper_sysenter},
    {"helper_syscall_x86_64", on_helper_syscall, &helper_syscall},
    {"helper_inb_x86_64", on_inb, &inb},
    {"helper_inw_x86_64", on_inw, &inw},
    {"helper_inl_x86_64", on_inl, &inl},
    {"helper_outb_x86_64", on_outb, &outb},
    {"helper_outw_x86_64", on_outw, &outw},
    {"helper_outl_x86_64", on_outl, &outl},
    {"gettimeofday", on_time_of_day, &time_of_day},
};

static const struct {
    const char *name;
    void *function;
} callbacks[] = {
    {"interrupt", on_interrupt},       {"invalid", on_invalid},           {"cpuid", on_cpuid},
    {"rdtsc", on_rdtsc},               {"rom_write", on_rom_write},       {"memory_read", on_memory_read},
    {"memory_write", on_memory_write}, {"window", on_window},             {"breakpoint", on_breakpoint},
};

#define COUNT(table) (sizeof table / sizeof table[0])

static void *known(void *context, void *function)
{
    for (unsigned i = 0; i < COUNT(replaced); i++) {
        if (replaced[i].replacement != function)
            continue;
        for (size_t j = 0; j < context_count; j++)
            if (contexts[j] == context)
                return function;
        return *(void **)replaced[i].original;
    }
    return function;
}

/* Bytes of the shared structure: Python refuses a library that was built from another source. */
EXPORT uint64_t vmi_core_size(void)
{
    return sizeof(struct core);
}

/* Functions of the emulator library that are called from here, by number; NULL behind the last one. */
EXPORT const char *vmi_core_import(unsigned number)
{
    return number < COUNT(imports) ? imports[number].name : NULL;
}

/* Functions that are replaced, by number; NULL behind the last one. */
EXPORT const char *vmi_core_replaced(unsigned number)
{
    return number < COUNT(replaced) ? replaced[number].name : NULL;
}

EXPORT void *vmi_core_replacement(unsigned number)
{
    return replaced[number].replacement;
}

/* Functions for the library's callbacks, by name; NULL if there is none. */
EXPORT void *vmi_core_callback(const char *name)
{
    for (unsigned i = 0; i < COUNT(callbacks); i++)
        if (!strcmp(callbacks[i].name, name))
            return callbacks[i].function;
    return NULL;
}

/* Have another function called for CPUs that aren't ours; false if it replaces none of the above. */
EXPORT bool vmi_core_put_behind(const char *name, void *function)
{
    for (unsigned i = 0; i < COUNT(replaced); i++)
        if (!strcmp(replaced[i].name, name)) {
            *(void **)replaced[i].original = function;
            return true;
        }
    return false;
}

/* Say where the library's functions are, in the order of the two tables, and some that are only compared. */
EXPORT void vmi_core_install(void *const *imported, void *const *originals, void *helper_debug,
                             void *helper_cc_compute_all, void *helper_reset_rf)
{
    for (unsigned i = 0; i < COUNT(imports); i++)
        *(void **)imports[i].variable = imported[i];
    for (unsigned i = 0; i < COUNT(replaced); i++)
        *(void **)replaced[i].original = originals[i];
    debug_helper = helper_debug;
    compute_all_helper = helper_cc_compute_all;
    reset_rf_helper = helper_reset_rf;
}

/* Serve a CPU from now on. */
EXPORT void vmi_core_adopt(struct core *core)
{
    AT(core->cpu, CPU_CORE, struct core *) = core;
}

/* Execute up to core->budget instructions from EIP; gives the library's error number. */
EXPORT int vmi_core_run(struct core *core, uint64_t eip)
{
    int status;

    core->counter = 0;
    core->window = core->walking = core->inside = core->tsc_known = 0;
    core->store_back = core->last_back = 0;
    *left_of(core) = (int64_t)core->budget;
    core->running = 1;
    status = emu_start(core->engine, eip, 0, 0, 0);
    core->running = 0;
    core->counter = core->budget - (uint64_t)*left_of(core);
    return status;
}
