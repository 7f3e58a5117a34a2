// SPDX-License-Identifier: GPL-2.0-only
/* The tables of functions that are called and replaced, and what Python calls. See core.h. */

#include "core.h"

#include <string.h>

#define EXPORT __attribute__((visibility("default")))

int (*lib_emu_start)(void *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
int (*lib_emu_stop)(void *engine);
struct block *(*lib_tb_lookup)(void *context, uintptr_t host);
char *(*lib_emit_op)(void *context, uint32_t opcode);
char *(*lib_new_temp)(void *context, int type, bool local);
void (*lib_free_temp)(void *context, char *temp);
void (*lib_gen_op1)(void *context, uint32_t opcode, uintptr_t a);
void (*lib_gen_op2)(void *context, uint32_t opcode, uintptr_t a, uintptr_t b);
void (*lib_gen_op3)(void *context, uint32_t opcode, uintptr_t a, uintptr_t b, uintptr_t c);
void (*lib_gen_brcondi)(void *context, int condition, uintptr_t temp, int64_t value, void *label);
void *(*lib_new_label)(void *context);
uintptr_t (*lib_const_i32)(void *context, int32_t value);
uintptr_t (*lib_const_i64)(void *context, int64_t value);
uint32_t (*lib_compute_flags)(void *env, int op);
void (*lib_set_dirty)(void *cpu, uint64_t linear);
void (*lib_flush)(void *cpu);
void (*lib_insn_start)(struct making *making, void *cpu), (*insn_start_before)(struct making *making, void *cpu);
struct block *(*lib_htable_lookup)(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t how);
void *(*lib_memset)(void *to, int value, size_t size);
void (*lib_reset_dirty)(void *cpu, uint64_t host, uint64_t size);
void (*lib_loop_exit_noexc)(void *cpu) NORETURN;
bool (*lib_restore_state)(void *cpu, uintptr_t back, bool will_exit);
void (*lib_call_n)(void *context, void *function, char *result, int count, char **args);
void (*lib_translate)(void *cpu, struct block *block, int most);
void (*lib_check_exit_request)(void *engine, uint32_t delayed);
void (*lib_init_context)(void *context);
void (*lib_set_page)(void *cpu, uint64_t linear, uint64_t physical, uint32_t attributes, int access, int mode, uint64_t size);
void (*lib_protect)(void *engine, uint64_t ram);
void (*lib_unprotect)(void *engine, uint64_t ram);
void *(*lib_lock)(void *engine, uint64_t start, uint64_t end);
void (*lib_unlock)(void *pages);
void (*lib_invalidate_fast)(void *engine, void *pages, uint64_t start, int size, uintptr_t back);
void (*lib_reset_dirty_by_linear)(void *cpu, uint64_t start, uint64_t size);
uint32_t (*lib_ldl_phys)(void *cpu, uint64_t at);
uint64_t (*lib_ldq_phys)(void *cpu, uint64_t at);
bool (*lib_fill)(void *cpu, uint64_t address, int size, int access, int mode, bool probe, uintptr_t back);
void (*lib_insert)(void *context, struct block *block);
void (*lib_check_intercept)(void *env, uint32_t kind, uint64_t parameter, uintptr_t back);
void (*lib_helper_into)(void *env, int length);
void (*lib_helper_rdpmc)(void *env);
void (*lib_helper_rdmsr)(void *env);
void (*lib_helper_rdtsc)(void *env);
void (*lib_helper_wrmsr)(void *env);
void (*lib_helper_write_crN)(void *env, int number, uint64_t value);
void (*lib_helper_sysenter)(void *env, int length);
void (*lib_helper_syscall)(void *env, int length);
void (*lib_update_cr0)(void *env, uint32_t value);
void (*lib_update_cr3)(void *env, uint64_t value);
void (*lib_update_cr4)(void *env, uint32_t value);
uint64_t (*lib_inb)(void *env, uint32_t port);
uint64_t (*lib_inw)(void *env, uint32_t port);
uint64_t (*lib_inl)(void *env, uint32_t port);
void (*lib_outb)(void *env, uint32_t port, uint32_t value);
void (*lib_outw)(void *env, uint32_t port, uint32_t value);
void (*lib_outl)(void *env, uint32_t port, uint32_t value);
int (*lib_time_of_day)(void *result, void *zone);

void *debug_helper, *compute_all_helper, *reset_rf_helper, *iret_helper;

static const struct {
    const char *name;
    void *variable;
} imports[] = {
    {"uc_emu_start", &lib_emu_start},
    {"uc_emu_stop", &lib_emu_stop},
    {"tcg_tb_lookup_x86_64", &lib_tb_lookup},
    {"tcg_emit_op_x86_64", &lib_emit_op},
    {"tcg_temp_new_internal_x86_64", &lib_new_temp},
    {"tcg_temp_free_internal_x86_64", &lib_free_temp},
    {"tcg_gen_op1_x86_64", &lib_gen_op1},
    {"tcg_gen_op2_x86_64", &lib_gen_op2},
    {"tcg_gen_op3_x86_64", &lib_gen_op3},
    {"tcg_gen_brcondi_i64_x86_64", &lib_gen_brcondi},
    {"gen_new_label_x86_64", &lib_new_label},
    {"tcg_const_i32_x86_64", &lib_const_i32},
    {"tcg_const_i64_x86_64", &lib_const_i64},
    {"cpu_cc_compute_all_x86_64", &lib_compute_flags},
    {"tlb_set_dirty_x86_64", &lib_set_dirty},
    {"tlb_reset_dirty_x86_64", &lib_reset_dirty},
};

static const struct {
    const char *name;
    void *replacement;
    void *original;
} replaced[] = {
    {"tlb_set_page_with_attrs_x86_64", on_set_page, &lib_set_page},
    {"tlb_set_dirty_x86_64", on_set_dirty, &lib_set_dirty},
    {"tlb_protect_code_x86_64", on_protect, &lib_protect},
    {"tlb_unprotect_code_x86_64", on_unprotect, &lib_unprotect},
    {"tlb_reset_dirty_by_vaddr_x86_64", on_reset_dirty_by_linear, &lib_reset_dirty_by_linear},
    {"page_collection_lock_x86_64", on_lock, &lib_lock},
    {"page_collection_unlock_x86_64", on_unlock, &lib_unlock},
    {"tb_invalidate_phys_page_fast_x86_64", on_invalidate_fast, &lib_invalidate_fast},
    {"x86_cpu_tlb_fill_x86_64", on_fill, &lib_fill},
    {"tlb_flush_x86_64", on_flush, &lib_flush},
    {"tb_htable_lookup_x86_64", on_htable_lookup, &lib_htable_lookup},
    {"memset", on_memset, &lib_memset},
    {"x86_ldl_phys_x86_64", on_ldl_phys, &lib_ldl_phys},
    {"x86_ldq_phys_x86_64", on_ldq_phys, &lib_ldq_phys},
    {"tcg_tb_insert_x86_64", on_insert, &lib_insert},
    {"tcg_gen_callN_x86_64", on_call_n, &lib_call_n},
    {"tcg_context_init_x86_64", on_init_context, &lib_init_context},
    {"gen_intermediate_code_x86_64", on_translate, &lib_translate},
    {"helper_check_exit_request_x86_64", on_check_exit_request, &lib_check_exit_request},
    {"cpu_restore_state_x86_64", on_restore_state, &lib_restore_state},
    {"cpu_loop_exit_noexc_x86_64", on_loop_exit_noexc, &lib_loop_exit_noexc},
    {"cpu_svm_check_intercept_param_x86_64", on_check_intercept, &lib_check_intercept},
    {"cpu_x86_update_cr0_x86_64", on_update_cr0, &lib_update_cr0},
    {"cpu_x86_update_cr3_x86_64", on_update_cr3, &lib_update_cr3},
    {"cpu_x86_update_cr4_x86_64", on_update_cr4, &lib_update_cr4},
    {"helper_into_x86_64", on_helper_into, &lib_helper_into},
    {"helper_rdpmc_x86_64", on_helper_rdpmc, &lib_helper_rdpmc},
    {"helper_rdtsc_x86_64", on_helper_rdtsc, &lib_helper_rdtsc},
    {"helper_rdmsr_x86_64", on_helper_rdmsr, &lib_helper_rdmsr},
    {"helper_wrmsr_x86_64", on_helper_wrmsr, &lib_helper_wrmsr},
    {"helper_write_crN_x86_64", on_helper_write_crN, &lib_helper_write_crN},
    {"helper_sysenter_x86_64", on_helper_sysenter, &lib_helper_sysenter},
    {"helper_syscall_x86_64", on_helper_syscall, &lib_helper_syscall},
    {"helper_inb_x86_64", on_inb, &lib_inb},
    {"helper_inw_x86_64", on_inw, &lib_inw},
    {"helper_inl_x86_64", on_inl, &lib_inl},
    {"helper_outb_x86_64", on_outb, &lib_outb},
    {"helper_outw_x86_64", on_outw, &lib_outw},
    {"helper_outl_x86_64", on_outl, &lib_outl},
    {"gettimeofday", on_time_of_day, &lib_time_of_day},
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

void *known_before(void *function)
{
    for (unsigned i = 0; i < COUNT(replaced); i++)
        if (replaced[i].replacement == function)
            return *(void **)replaced[i].original;
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

/*
 * Say where the library's functions are: those of the two tables, in their order; insn_start, which its
 * translator calls for each instruction; and helpers that are only compared. What has been called instead of
 * insn_start until now is "before", and still is for CPUs that are not ours. Gives the function to call now.
 */
EXPORT void *vmi_core_install(void *const *imported, void *const *originals, void *insn_start, void *before,
                              void *helper_debug, void *helper_cc_compute_all, void *helper_reset_rf,
                              void *helper_iret)
{
    for (unsigned i = 0; i < COUNT(imports); i++)
        *(void **)imports[i].variable = imported[i];
    for (unsigned i = 0; i < COUNT(replaced); i++)
        *(void **)replaced[i].original = originals[i];
    debug_helper = helper_debug;
    compute_all_helper = helper_cc_compute_all;
    reset_rf_helper = helper_reset_rf;
    iret_helper = helper_iret;
    *(void **)&lib_insn_start = insn_start;
    *(void **)&insn_start_before = before;
    return on_insn_start;
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
    core->store_back = core->last_back = core->resumed = 0;
    *left_of(core) = (int64_t)core->budget;
    core->running = 1;
    status = lib_emu_start(core->engine, eip, 0, 0, 0);
    core->running = 0;
    core->counter = core->budget - (uint64_t)*left_of(core);
    return status;
}
