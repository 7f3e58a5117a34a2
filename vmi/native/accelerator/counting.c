// SPDX-License-Identifier: GPL-2.0-only
/* Blocks of code: how many instructions they have, and how they are left. See core.h. */

#include "core.h"

#include <stdlib.h>

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

struct block *block_at(struct core *core, uintptr_t back)
{
    return back ? lib_tb_lookup(AT(core->engine, ENGINE_CONTEXT, void *), back - LENGTH_OF_CALL) : NULL;
}

struct begun { /* an instruction, as it begins */
    uint64_t pc;
    uint64_t cc_op; /* form of the flags */
};

/*
 * Number of the instruction in its block that called from somewhere. Behind the code of a block is a table
 * of its instructions: address, form of the flags, and end in the code, each as difference to the one before.
 */
static int find(const struct block *block, uintptr_t back, struct begun *begun)
{
    uint8_t *table = block->code + block->code_size;
    uintptr_t end = (uintptr_t)block->code;

    *begun = (struct begun){.pc = block->pc};
    for (int i = 0; i < block->count; i++) {
        begun->pc += read_sleb128(&table);
        begun->cc_op += read_sleb128(&table);
        end += read_sleb128(&table);
        if (end > back - LENGTH_OF_CALL)
            return i;
    }
    return block->count - 1;
}

int index_in(const struct block *block, uintptr_t back)
{
    struct begun begun;

    return find(block, back, &begun);
}

/* Go back to the start of the instruction that called from somewhere, and give its number. */
static int restore(struct core *core, const struct block *block, uintptr_t back)
{
    struct begun begun;
    int number = find(block, back, &begun);

    if (RARELY(block->cflags & CFLAGS_ONCE)) {
        lib_restore_state(core->cpu, back, false); /* it drops the block, too */
        return number;
    }
    AT(core->env, ENV_EIP, uint64_t) = begun.pc - block->cs_base;
    if ((uint32_t)begun.cc_op != CC_OP_DYNAMIC)
        AT(core->env, ENV_CC_OP, uint32_t) = (uint32_t)begun.cc_op;
    return number;
}

void alone(struct core *core, uintptr_t back)
{
    struct block *block;
    int left;

    if (!core->running || core->inside)
        return;
    block = block_at(core, back);
    if (!block)
        return;
    left = block->count;
    left -= restore(core, block, back);
    if (left <= 1)
        return;
    core->left_early |= block == core->made;
    core->resumed = block->flags & FLAGS_RF && !(block->cflags & CFLAGS_COUNT) ? (uint32_t)left - 1 : 0;
    *left_of(core) += left;
    core->walking = 0;
    AT(core->cpu, CPU_NEXT_BLOCK, uint32_t) = CFLAGS_CUT | 1;
    lib_loop_exit_noexc(core->cpu);
}

/* A block has begun with fewer instructions left than it has. */
static void NORETURN expired(struct core *core, uintptr_t back)
{
    struct block *block = block_at(core, back);
    int64_t left = *left_of(core) += block->count;

    AT(core->env, ENV_EIP, uint64_t) = block->pc - block->cs_base;
    if (left > 0)
        AT(core->cpu, CPU_NEXT_BLOCK, uint32_t) = CFLAGS_CUT | (uint32_t)left;
    else
        lib_emu_stop(core->engine);
    lib_loop_exit_noexc(core->cpu);
}

void on_check_exit_request(void *engine, uint32_t delayed)
{
    struct core *core = core_of_engine(engine);

    if (core)
        expired(core, BACK);
    lib_check_exit_request(engine, delayed); /* a jump: it looks at where it was called from */
}

static void gen_counting(struct core *core, void *context)
{
    char *left = lib_new_temp(context, TYPE_I64, false), *number = lib_new_temp(context, TYPE_I64, false);
    uintptr_t env = (uintptr_t)context + AT(context, CONTEXT_ENV, uintptr_t);
    void *label;
    char *args[2];

    lib_gen_op3(context, core->op_ld, (uintptr_t)left, env, (uintptr_t)(intptr_t)(CPU_LEFT - CPU_ENV));
    core->charge = lib_emit_op(context, core->op_movi);
    AT(core->charge, OP_ARGS, uintptr_t) = (uintptr_t)number;
    AT(core->charge, OP_ARGS + 8, uintptr_t) = 0;
    lib_gen_op3(context, core->op_add, (uintptr_t)left, (uintptr_t)left, (uintptr_t)number);
    lib_gen_op3(context, core->op_st, (uintptr_t)left, env, (uintptr_t)(intptr_t)(CPU_LEFT - CPU_ENV));
    label = lib_new_label(context);
    lib_gen_brcondi(context, COND_GE, (uintptr_t)left - (uintptr_t)context, 0, label);
    lib_free_temp(context, left);
    lib_free_temp(context, number);
    /* a branch ends the life of all temporaries, those for the call too */
    args[0] = (char *)context + lib_const_i64(context, (intptr_t)core->engine);
    args[1] = (char *)context + lib_const_i32(context, 0);
    lib_call_n(context, on_check_exit_request, NULL, 2, args);
    lib_free_temp(context, args[0]);
    lib_free_temp(context, args[1]);
    *(uint16_t *)label |= 1; /* it is present */
    lib_gen_op1(context, core->op_set_label, (uintptr_t)label);
}

/*
 * An engine that was there before us knows its helpers by what they were then. Those made since are listed;
 * what is freed and made again is listed again.
 */
static void **contexts;
static size_t context_count;

static void *known(void *context, void *function)
{
    for (size_t i = 0; i < context_count; i++)
        if (contexts[i] == context)
            return function;
    return known_before(function);
}

void on_init_context(void *context)
{
    void **more = realloc(contexts, (context_count + 1) * sizeof *contexts);

    if (more) {
        contexts = more;
        contexts[context_count++] = context;
    }
    lib_init_context(context);
}

/* Python is always asked by this, so that there is no use for a block that goes on behind it. */
static bool asks(const void *function)
{
    static const void *const asking[] = {
        on_inb, on_inw, on_inl, on_outb, on_outw, on_outl, on_helper_rdmsr, on_helper_wrmsr,
    };

    for (size_t i = 0; i < sizeof asking / sizeof *asking; i++)
        if (asking[i] == function)
            return true;
    return false;
}

/*
 * IRET is about to be called, which stores the flags if it returns to another task. The library doesn't see to
 * it that the CPU knows their form.
 */
static void tell_flags(struct core *core, void *context)
{
    struct making *making = core->making;

    if (!making || !making->cc_op_untold)
        return;
    lib_gen_op2(context, core->flag_operations.movi_i32, (uintptr_t)context + AT(context, CONTEXT_CC_OP, uintptr_t),
                making->cc_op);
    making->cc_op_untold = 0;
}

void on_call_n(void *context, void *function, char *result, int count, char **args)
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
        if (function == iret_helper)
            tell_flags(core, context);
        /* the resume flag lasts to the end of a block, and this is none */
        if (function == reset_rf_helper && core->cut)
            return;
    } else {
        function = known(context, function);
    }
    lib_call_n(context, function, result, count, args);
    if (RARELY(core && (AT(context, CONTEXT_TEMPS, int) > MOST_TEMPS || (!core->resumes && asks(function)))))
        AT(context, CONTEXT_OPS, int) = MOST_OPS;
}

/*
 * An instruction is about to be translated. Near the end of a page it is the last of its block, so that none
 * looks at the page behind, and has it marked as accessed, but one that is about to be executed and reaches there.
 */
void on_insn_start(struct making *making, void *cpu)
{
    struct core *core = core_of_cpu(cpu);

    if (!core) {
        insn_start_before(making, cpu);
        return;
    }
    core->making = making;
    lib_insn_start(making, cpu);
    if (making->next % (1 << PAGE_BITS) >= LATE)
        making->most = making->count;
}

/*
 * Instructions of a block to be made. Straight code of which each instruction has to be done alone, as it
 * accesses a device or stores into what follows, would have a long block made for each, to be left at once.
 */
static int length(struct core *core, struct block *block)
{
    int rest = (int)core->resumed;

    if (block->cflags & CFLAGS_COUNT)
        return MOST_INSTRUCTIONS;
    core->resumed = 0;
    if (core->resumes)
        return rest ? rest : MOST_INSTRUCTIONS;
    if (core->left_early)
        core->haste += core->haste < MOST_HASTE;
    else
        core->haste -= core->haste > 0;
    core->made = block;
    core->left_early = 0;
    return MOST_INSTRUCTIONS >> core->haste;
}

void on_translate(void *cpu, struct block *block, int most)
{
    struct core *core = core_of_cpu(cpu);
    int longest;

    if (!core) {
        lib_translate(cpu, block, most);
        return;
    }
    core->resumes = block->flags & FLAGS_RF;
    longest = length(core, block);
    core->counts = core->breaks = 0;
    core->cut = block->cflags & CFLAGS_CUT;
    core->charge = NULL;
    lib_translate(cpu, block, most < longest ? most : longest);
    /* the library counts the instruction that a breakpoint is in front of, which is not executed */
    block->count -= (uint16_t)core->breaks;
    flags_first(AT(core->engine, ENGINE_CONTEXT, void *), &core->flag_operations, compute_all_helper);
    if (core->charge)
        AT(core->charge, OP_ARGS + 8, uintptr_t) = (uintptr_t)(-(intptr_t)block->count);
}

bool on_restore_state(void *cpu, uintptr_t back, bool will_exit)
{
    struct core *core = core_of_cpu(cpu);
    struct block *block;
    int count, number;

    if (!core || !core->running || core->inside)
        return lib_restore_state(cpu, back, will_exit);
    core->last_back = back;
    block = block_at(core, back);
    if (!block)
        return false;
    count = block->count;
    number = restore(core, block, back);
    if (will_exit)
        *left_of(core) += count - (number + 1);
    return true;
}

void on_loop_exit_noexc(void *cpu)
{
    struct core *core = core_of_cpu(cpu);

    if (core && core->store_back) {
        /* the store was into its own block, and is done again from the start, alone */
        struct block *block = block_at(core, core->store_back);

        if (block)
            *left_of(core) += block->count - index_in(block, core->store_back);
        core->left_early |= block == core->made;
        core->store_back = 0;
    }
    lib_loop_exit_noexc(cpu);
}
