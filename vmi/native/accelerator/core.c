// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C part of the CPU, optional: see vmi/native/accelerator/__init__.py.
 *
 * One structure per engine is shared with Python, field by field as declared there.
 */

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

struct core {
    uint64_t size;     /* of this structure, as Python has it */
    uint64_t counter;  /* instructions begun in this run, as Python callbacks see it */
    uint64_t budget;   /* instructions that this run may begin */
    void *engine;      /* the library's structures */
    void *cpu;
    void *env;
    int (*emu_start)(void *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
};

/* Bytes of the structure: Python refuses a library that was built from another source. */
EXPORT uint64_t vmi_core_size(void)
{
    return sizeof(struct core);
}

/* Execute up to core->budget instructions from EIP; gives the library's error number. */
EXPORT int vmi_core_run(struct core *core, uint64_t eip)
{
    return core->emu_start(core->engine, eip, 0, 0, core->budget);
}
