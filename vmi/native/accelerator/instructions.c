// SPDX-License-Identifier: GPL-2.0-only
/* Instructions that Python is asked for, or that are done here. See core.h. */

#include "core.h"

static uint64_t port_read(struct core *core, uint32_t port, int size, uintptr_t back)
{
    uint32_t value;

    alone(core, back);
    show(core);
    value = core->port_read(port, size);
    take(core);
    return size == 4 ? value : value & ((1u << 8 * size) - 1);
}

static void port_write(struct core *core, uint32_t port, int size, uint32_t value, uintptr_t back)
{
    alone(core, back);
    show(core);
    core->port_write(port, size, size == 4 ? value : value & ((1u << 8 * size) - 1));
    take(core);
}

#define IN(name, size)                                                                                         \
    uint64_t on_##name(void *env, uint32_t port)                                                               \
    {                                                                                                          \
        struct core *core = core_of_env(env);                                                                  \
                                                                                                               \
        if (core)                                                                                              \
            return port_read(core, port, size, BACK);                                                          \
        return lib_##name(env, port);                                                                                \
    }
#define OUT(name, size)                                                                                        \
    void on_##name(void *env, uint32_t port, uint32_t value)                                                   \
    {                                                                                                          \
        struct core *core = core_of_env(env);                                                                  \
                                                                                                               \
        if (core)                                                                                              \
            port_write(core, port, size, value, BACK);                                                         \
        else                                                                                                   \
            lib_##name(env, port, value);                                                                            \
    }

IN(inb, 1)
IN(inw, 2)
IN(inl, 4)
OUT(outb, 1)
OUT(outw, 2)
OUT(outl, 4)

/* A function that Python does for our CPUs. */
#define ASKED(name, arguments, values, function)                                                               \
    void on_##name arguments                                                                                   \
    {                                                                                                          \
        struct core *core = core_of_env(env);                                                                  \
                                                                                                               \
        if (!core) {                                                                                           \
            lib_##name values;                                                                                 \
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

enum { CR0_PE = 1, CR0_NW = 1 << 29, CR0_CD = 1 << 30 };
#define CR0_PG (UINT64_C(1) << 31)

/* Whether MOV to a control register loads the value is Python's to say where there is a doubt. */
void on_helper_write_crN(void *env, int number, uint64_t value)
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
    lib_helper_write_crN(env, number, value);
}

/* INTO and RDPMC raise exceptions without saying where, and so without giving anything back. */
void on_helper_into(void *env, int length)
{
    struct core *core = core_of_env(env);

    if (core)
        alone(core, BACK);
    lib_helper_into(env, length);
}

void on_helper_rdpmc(void *env)
{
    struct core *core = core_of_env(env);

    if (core)
        alone(core, BACK);
    lib_helper_rdpmc(env);
}

/* Asked over and over by guests that wait, so done without Python if what it would say is known. */
void on_helper_rdtsc(void *env)
{
    struct core *core = core_of_env(env);
    uint64_t value;
    struct block *block;
    bool refused = AT(env, ENV_CR4, uint64_t) & CR4_TSD && AT(env, ENV_HFLAGS, uint32_t) & HF_CPL;

    if (!core || !core->tsc_known || refused || !(block = block_at(core, BACK))) {
        lib_helper_rdtsc(env);
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

void on_update_cr0(void *env, uint32_t value)
{
    lib_update_cr0(env, value);
    control_loaded(env);
}

void on_update_cr3(void *env, uint64_t value)
{
    lib_update_cr3(env, value);
    control_loaded(env);
}

void on_update_cr4(void *env, uint32_t value)
{
    lib_update_cr4(env, value);
    control_loaded(env);
}

/*
 * Asked by some instructions for a hypervisor of the guest's own, which there never is. PAUSE does so
 * before it leaves the library's main loop in a way that can't be done from Python.
 */
void on_check_intercept(void *env, uint32_t kind, uint64_t parameter, uintptr_t back)
{
    struct core *core = core_of_env(env);

    if (!core) {
        lib_check_intercept(env, kind, parameter, back);
    } else if (kind == SVM_PAUSE && core->tells_of_pauses) {
        show(core);
        core->paused();
        take(core);
    }
}

/* No time passes for the library, so that a run depends on its input alone. */

int on_time_of_day(uint64_t *result, void *zone)
{
    (void)zone;
    result[0] = result[1] = 0;
    return 0;
}
