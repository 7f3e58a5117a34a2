// SPDX-License-Identifier: GPL-2.0-only
/* Callbacks that the emulator library offers. See core.h. */

#include "core.h"

/* The library's main loop reports an exception. The flags are brought into the form that Python knows. */
void on_interrupt(void *engine, uint32_t vector, struct core *core)
{
    void *env = core->env;
    int op = AT(env, ENV_CC_OP, int);
    uint64_t counter;
    bool done;
    int gate = -1;

    core->walking = 0;
    if (op != CC_OP_EFLAGS) {
        AT(env, ENV_CC_SRC, uint64_t) = lib_compute_flags(env, op);
        AT(env, ENV_CC_OP, int) = CC_OP_EFLAGS;
    }
    counter = core->budget - (uint64_t)*left_of(core);
    done = straight_report(core->straight, vector, counter, &core->budget);
    if (!done) {
        gate = straight_gate(core->straight, vector, counter, core->budget);
        if (gate >= 0 && serve_call(core, (uint32_t)gate)) {
            straight_spend(core->straight, counter, &core->budget);
            done = true;
        }
    }
    if (done) {
        *left_of(core) = (int64_t)(core->budget - counter);
        core->tsc_origin += (uint64_t)(core->straight->ns_event / core->straight->ns_each);
        if (core->budget == counter)
            lib_emu_stop(engine);
        return;
    }
    if (gate >= 0) {
        bool served;

        show(core);
        served = core->straight->called((uint32_t)gate);
        if (served)
            straight_spend(core->straight, core->counter, &core->budget);
        take(core);
        if (served && core->budget == core->counter)
            lib_emu_stop(engine);
        if (served)
            return;
    }
    show(core);
    core->interrupt(engine, vector, NULL);
    take(core);
}

bool on_invalid(void *engine, struct core *core)
{
    bool handled;

    show(core);
    handled = core->invalid(engine, NULL);
    take(core);
    return handled;
}

int on_cpuid(void *engine, struct core *core)
{
    int handled;

    alone(core, core->last_back);
    show(core);
    handled = core->cpuid(engine, NULL);
    take(core);
    return handled;
}

int on_rdtsc(void *engine, struct core *core)
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

bool on_rom_write(void *engine, int kind, uint64_t address, int size, int64_t value, struct core *core)
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

uint64_t on_memory_read(void *engine, uint64_t offset, unsigned size, struct region *region)
{
    struct core *core = region->core;
    uint64_t value;

    (void)engine;
    before_device(core);
    value = core->memory_read(region->start + offset, size);
    take(core);
    return value;
}

void on_memory_write(void *engine, uint64_t offset, unsigned size, uint64_t value, struct region *region)
{
    struct core *core = region->core;

    (void)engine;
    before_device(core);
    core->memory_write(region->start + offset, size, value);
    take(core);
}

/* Instead of the library's delivery of interrupts. */
bool on_window(void *cpu, int request)
{
    struct core *core = core_of_cpu(cpu);
    void *env = core->env;

    (void)request;
    if (AT(env, ENV_EFLAGS, uint64_t) & IF_BIT && !(AT(env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ)) {
        AT(cpu, CPU_INTERRUPT_REQUEST, uint32_t) = 0;
        core->window = 1;
        lib_emu_stop(core->engine);
    }
    return false;
}

void on_breakpoint(void *cpu)
{
    struct core *core = core_of_cpu(cpu);

    show(core);
    core->breakpoint(cpu);
    take(core);
}
