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
 */

#ifndef CORE_H
#define CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "flags.h"
#include "straight.h"

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
    CONTEXT_CC_OP = 39312,
    OP_ARGS = 24,
};

enum { CC_OP_DYNAMIC = 0, CC_OP_EFLAGS = 1, IF_BIT = 0x200, HF_CPL = 3, HF_INHIBIT_IRQ = 8, CR4_TSD = 4 };
enum { WRITABLE = 2, TYPE_I64 = 1, COND_GE = 3 };
/*
 * The library has room for 512 temporaries in a block, doesn't look whether that is enough, and loses some
 * with many an instruction. By itself it ends a block only at so many operations.
 */
enum { MOST_TEMPS = 400, MOST_OPS = 4000, MOST_INSTRUCTIONS = 128 };
/* log2 of MOST_INSTRUCTIONS */
enum { MOST_HASTE = 7 };
/* of a block: RF is on, and ends with it, so that a guest can tell where that is */
enum { FLAGS_RF = 0x10000 };
/* Offset in a page from which on an instruction may be followed by one that reaches the next page. */
enum { LATE = 4096 - 2 * 15 };
enum { PAGE_BITS = 12, SVM_PAUSE = 0x77, LENGTH_OF_CALL = 2 };
/* how a block is translated: as so many instructions; by a mark that the library has no use for, cut; not kept */
enum { CFLAGS_COUNT = 0x7fff, CFLAGS_CUT = 0x8000, CFLAGS_ONCE = 0x10000 };
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

struct making { /* what the library keeps of a block that it is translating */
    struct block *block;
    uint64_t first; /* linear addresses: of the block, */
    uint64_t next;  /* and of the instruction that begins */
    int ends;
    int count;      /* instructions begun */
    int most;
    uint8_t more[80];
    uint32_t cc_op; /* form of the flags */
    uint32_t stored;
    uint8_t cc_op_untold; /* the CPU doesn't know it yet */
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
    uint32_t resumes;     /* RF is on in that block, so that it must end where the library ends it */
    uint32_t resumed;     /* instructions that such a block has behind one that was done alone, else 0 */
    uint64_t known_parts; /* of the library's table of blocks: something may be in them */
    struct making *making; /* the block in the making */
    struct block *made;   /* the last block that is not a part of one */
    uint32_t left_early;  /* and whether it was left for one of its instructions to be done alone */
    uint32_t haste;       /* how often that was so lately */
    struct straight *straight; /* what of events need not be asked */

    uint32_t (*port_read)(uint32_t port, int size);
    void (*port_write)(uint32_t port, int size, uint32_t value);
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

/* The emulator library's functions, or what was there instead of those that are replaced. */
extern int (*lib_emu_start)(void *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
extern int (*lib_emu_stop)(void *engine);
extern struct block *(*lib_tb_lookup)(void *context, uintptr_t host);
extern char *(*lib_emit_op)(void *context, uint32_t opcode);
extern char *(*lib_new_temp)(void *context, int type, bool local);
extern void (*lib_free_temp)(void *context, char *temp);
extern void (*lib_gen_op1)(void *context, uint32_t opcode, uintptr_t a);
extern void (*lib_gen_op2)(void *context, uint32_t opcode, uintptr_t a, uintptr_t b);
extern void (*lib_gen_op3)(void *context, uint32_t opcode, uintptr_t a, uintptr_t b, uintptr_t c);
extern void (*lib_gen_brcondi)(void *context, int condition, uintptr_t temp, int64_t value, void *label);
extern void *(*lib_new_label)(void *context);
extern uintptr_t (*lib_const_i32)(void *context, int32_t value);
extern uintptr_t (*lib_const_i64)(void *context, int64_t value);
extern uint32_t (*lib_compute_flags)(void *env, int op);
extern void (*lib_set_dirty)(void *cpu, uint64_t linear);
extern void (*lib_flush)(void *cpu);
extern void (*lib_insn_start)(struct making *making, void *cpu), (*insn_start_before)(struct making *making, void *cpu);
extern struct block *(*lib_htable_lookup)(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t how);
extern void *(*lib_memset)(void *to, int value, size_t size);
extern void (*lib_reset_dirty)(void *cpu, uint64_t host, uint64_t size);
extern void (*lib_loop_exit_noexc)(void *cpu) NORETURN;
extern bool (*lib_restore_state)(void *cpu, uintptr_t back, bool will_exit);
extern void (*lib_call_n)(void *context, void *function, char *result, int count, char **args);
extern void (*lib_translate)(void *cpu, struct block *block, int most);
extern void (*lib_check_exit_request)(void *engine, uint32_t delayed);
extern void (*lib_init_context)(void *context);
extern void (*lib_set_page)(void *cpu, uint64_t linear, uint64_t physical, uint32_t attributes, int access, int mode, uint64_t size);
extern void (*lib_protect)(void *engine, uint64_t ram);
extern void (*lib_unprotect)(void *engine, uint64_t ram);
extern void *(*lib_lock)(void *engine, uint64_t start, uint64_t end);
extern void (*lib_unlock)(void *pages);
extern void (*lib_invalidate_fast)(void *engine, void *pages, uint64_t start, int size, uintptr_t back);
extern void (*lib_reset_dirty_by_linear)(void *cpu, uint64_t start, uint64_t size);
extern uint32_t (*lib_ldl_phys)(void *cpu, uint64_t at);
extern uint64_t (*lib_ldq_phys)(void *cpu, uint64_t at);
extern bool (*lib_fill)(void *cpu, uint64_t address, int size, int access, int mode, bool probe, uintptr_t back);
extern void (*lib_insert)(void *context, struct block *block);
extern void (*lib_check_intercept)(void *env, uint32_t kind, uint64_t parameter, uintptr_t back);
extern void (*lib_helper_into)(void *env, int length);
extern void (*lib_helper_rdpmc)(void *env);
extern void (*lib_helper_rdmsr)(void *env);
extern void (*lib_helper_rdtsc)(void *env);
extern void (*lib_helper_wrmsr)(void *env);
extern void (*lib_helper_write_crN)(void *env, int number, uint64_t value);
extern void (*lib_helper_sysenter)(void *env, int length);
extern void (*lib_helper_syscall)(void *env, int length);
extern void (*lib_update_cr0)(void *env, uint32_t value);
extern void (*lib_update_cr3)(void *env, uint64_t value);
extern void (*lib_update_cr4)(void *env, uint32_t value);
extern uint64_t (*lib_inb)(void *env, uint32_t port);
extern uint64_t (*lib_inw)(void *env, uint32_t port);
extern uint64_t (*lib_inl)(void *env, uint32_t port);
extern void (*lib_outb)(void *env, uint32_t port, uint32_t value);
extern void (*lib_outw)(void *env, uint32_t port, uint32_t value);
extern void (*lib_outl)(void *env, uint32_t port, uint32_t value);
extern int (*lib_time_of_day)(void *result, void *zone);

extern void *debug_helper, *compute_all_helper, *reset_rf_helper, *iret_helper;

/* Whose is it? NULL for CPUs that are served by others. */

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

/* Python is about to be called: let it see how many instructions have begun. */
static inline void show(struct core *core)
{
    if (!core->inside++ && core->running)
        core->counter = core->budget - (uint64_t)*left_of(core);
}

/* Python has come back: it may have taken an instruction back, or cut the budget. */
static inline void take(struct core *core)
{
    core->tsc_known = 0;
    if (!--core->inside && core->running)
        *left_of(core) = (int64_t)(core->budget - core->counter);
}

/*
 * See to it that the instruction which calls from somewhere is the last of its block, and that the state is
 * that in front of it; comes back only then. Nothing is to be seen to of what doesn't belong to a block.
 */
void alone(struct core *core, uintptr_t back);

/* The block that calls from somewhere, NULL if none does, and the number of the instruction in it. */
struct block *block_at(struct core *core, uintptr_t back);
int index_in(const struct block *block, uintptr_t back);

/* Do the call that a gate in the ROM stands for; false if that is Python's. straight_spend() is the caller's. */
bool serve_call(struct core *core, uint32_t gate);

/* An engine that was there before us knows a helper by another address. */
void *known_before(void *function);

/* What the emulator library calls instead of its own functions, and for callbacks. */
void on_breakpoint(void *cpu);
void on_call_n(void *context, void *function, char *result, int count, char **args);
void on_check_exit_request(void *engine, uint32_t delayed);
void on_check_intercept(void *env, uint32_t kind, uint64_t parameter, uintptr_t back);
int on_cpuid(void *engine, struct core *core);
void on_flush(void *cpu);
struct block *on_htable_lookup(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t how);
void *on_memset(void *to, int value, size_t size);
bool on_fill(void *cpu, uint64_t address, int size, int access, int mode, bool probe, uintptr_t back);
void on_helper_into(void *env, int length);
void on_helper_rdmsr(void *env);
void on_helper_rdpmc(void *env);
void on_helper_rdtsc(void *env);
void on_helper_syscall(void *env, int length);
void on_helper_sysenter(void *env, int length);
void on_helper_wrmsr(void *env);
void on_helper_write_crN(void *env, int number, uint64_t value);
uint64_t on_inb(void *env, uint32_t port);
void on_init_context(void *context);
uint64_t on_inl(void *env, uint32_t port);
void on_insert(void *context, struct block *block);
void on_insn_start(struct making *making, void *cpu);
void on_interrupt(void *engine, uint32_t vector, struct core *core);
bool on_invalid(void *engine, struct core *core);
void on_invalidate_fast(void *engine, void *pages, uint64_t start, int size, uintptr_t back);
uint64_t on_inw(void *env, uint32_t port);
uint32_t on_ldl_phys(void *cpu, uint64_t at);
uint64_t on_ldq_phys(void *cpu, uint64_t at);
void *on_lock(void *engine, uint64_t start, uint64_t end);
void on_loop_exit_noexc(void *cpu);
uint64_t on_memory_read(void *engine, uint64_t offset, unsigned size, struct region *region);
void on_memory_write(void *engine, uint64_t offset, unsigned size, uint64_t value, struct region *region);
void on_outb(void *env, uint32_t port, uint32_t value);
void on_outl(void *env, uint32_t port, uint32_t value);
void on_outw(void *env, uint32_t port, uint32_t value);
void on_protect(void *engine, uint64_t ram);
int on_rdtsc(void *engine, struct core *core);
void on_reset_dirty_by_linear(void *cpu, uint64_t start, uint64_t size);
bool on_restore_state(void *cpu, uintptr_t back, bool will_exit);
bool on_rom_write(void *engine, int kind, uint64_t address, int size, int64_t value, struct core *core);
void on_set_dirty(void *cpu, uint64_t linear);
void on_set_page(void *cpu, uint64_t linear, uint64_t physical, uint32_t attributes, int access, int mode, uint64_t size);
int on_time_of_day(uint64_t *result, void *zone);
void on_translate(void *cpu, struct block *block, int most);
void on_unlock(void *pages);
void on_unprotect(void *engine, uint64_t ram);
void on_update_cr0(void *env, uint32_t value);
void on_update_cr3(void *env, uint64_t value);
void on_update_cr4(void *env, uint32_t value);
bool on_window(void *cpu, int request);

#endif
