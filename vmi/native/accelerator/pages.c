// SPDX-License-Identifier: GPL-2.0-only
/* Pages that hold code, and translations of addresses. See core.h. */

#include "core.h"

#include <string.h>

static char no_pages; /* stands for the library's list of pages, which serves only to lock them */

void on_set_page(void *cpu, uint64_t linear, uint64_t physical, uint32_t attributes, int access,
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
    lib_set_page(cpu, linear, physical, attributes, access, mode, size);
    if (core && access & WRITABLE) {
        page = physical >> PAGE_BITS;
        if (page >= core->page_count || !core->pages[page])
            lib_set_dirty(cpu, linear); /* has no effect on ROM and devices */
    }
}

void on_set_dirty(void *cpu, uint64_t linear)
{
    /*
     * The library asks for this behind the first store through a mapping that can't be executed, and would
     * miss the next one into code there. Pages without code have had it above.
     */
    if (!core_of_cpu(cpu))
        lib_set_dirty(cpu, linear);
}

void on_protect(void *engine, uint64_t ram)
{
    struct core *core = core_of_engine(engine);
    uint64_t page = ram >> PAGE_BITS;

    if (!core) {
        lib_protect(engine, ram);
    } else if (page < core->page_count) {
        core->pages[page] |= PAGE_HOLDS_CODE;
        lib_reset_dirty(core->cpu, (uintptr_t)core->ram + (page << PAGE_BITS), 1 << PAGE_BITS);
    }
}

void on_unprotect(void *engine, uint64_t ram)
{
    struct core *core = core_of_engine(engine);

    if (!core)
        lib_unprotect(engine, ram);
    else if (ram >> PAGE_BITS < core->page_count)
        core->pages[ram >> PAGE_BITS] &= (uint8_t)~PAGE_HOLDS_CODE;
}

void on_reset_dirty_by_linear(void *cpu, uint64_t start, uint64_t size)
{
    /* each block asks for its own pages, which have had it above */
    if (!core_of_cpu(cpu))
        lib_reset_dirty_by_linear(cpu, start, size);
}

void *on_lock(void *engine, uint64_t start, uint64_t end)
{
    return core_of_engine(engine) ? &no_pages : lib_lock(engine, start, end);
}

void on_unlock(void *pages)
{
    if (pages != &no_pages)
        lib_unlock(pages);
}

void on_invalidate_fast(void *engine, void *pages, uint64_t start, int size, uintptr_t back)
{
    struct core *core = core_of_engine(engine);

    if (!core) {
        lib_invalidate_fast(engine, pages, start, size, back);
        return;
    }
    if (start >> PAGE_BITS < core->page_count && core->pages[start >> PAGE_BITS] & PAGE_IS_WATCHED) {
        alone(core, back);
        show(core);
        core->storing(start, (uint64_t)size);
        take(core);
    }
    core->store_back = core->running && !core->inside ? back : 0;
    lib_invalidate_fast(engine, pages, start, size, back);
    core->store_back = 0;
}

/*
 * Entries of page tables in RAM are loaded from there. The library would look each time for what lies at that
 * address, which takes longer than all else that a walk does.
 */

static inline void *in_ram(struct core *core, uint64_t at, unsigned size)
{
    return core && at >> PAGE_BITS < core->page_count && !(at & (size - 1)) ? (char *)core->ram + at : NULL;
}

uint32_t on_ldl_phys(void *cpu, uint64_t at)
{
    uint32_t *found = in_ram(core_of_cpu(cpu), at, sizeof *found);

    return found ? *found : lib_ldl_phys(cpu, at);
}

uint64_t on_ldq_phys(void *cpu, uint64_t at)
{
    uint64_t *found = in_ram(core_of_cpu(cpu), at, sizeof *found);

    return found ? *found : lib_ldq_phys(cpu, at);
}

bool on_fill(void *cpu, uint64_t address, int size, int access, int mode, bool probe, uintptr_t back)
{
    struct core *core = core_of_cpu(cpu);
    bool found;

    if (!core)
        return lib_fill(cpu, address, size, access, mode, probe, back);
    core->walking = 1;
    core->walk_back = back;
    found = lib_fill(cpu, address, size, access, mode, probe, back);
    core->walking = 0;
    return found;
}

void on_insert(void *context, struct block *block)
{
    struct core *core = core_of_engine(AT(context, CONTEXT_ENGINE, void *));

    lib_insert(context, block);
    /* what a block of a given length has was in the one that it is a part of */
    if (core && core->tells_of_blocks && !(block->cflags & CFLAGS_COUNT)) {
        show(core);
        core->block_appeared(block->pc, block->size);
        take(core);
    }
}

/*
 * The library knows blocks by their linear addresses, in a table of 64 parts; which part is the page's. Dropping
 * all translations it clears all of the table, which takes as long as all else that loading CR3 does. Here only
 * those parts are cleared that something was put into: before the library puts a block in, it looks for it by
 * on_htable_lookup().
 */

enum { PARTS = 64, PART_SIZE = 64 * sizeof(void *) };

static _Thread_local struct core *flushing;

struct block *on_htable_lookup(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t how)
{
    struct core *core = core_of_cpu(cpu);

    if (core)
        core->known_parts |= UINT64_C(1) << ((pc ^ pc >> 6) >> PAGE_BITS) % PARTS;
    return lib_htable_lookup(cpu, pc, cs_base, flags, how);
}

void on_flush(void *cpu)
{
    flushing = core_of_cpu(cpu);
    lib_flush(cpu);
    flushing = NULL;
}

void *on_memset(void *to, int value, size_t size)
{
    struct core *core = size == PARTS * PART_SIZE ? flushing : NULL;

    if (!core || to < core->cpu || to >= core->env)
        return memset(to, value, size);
    for (; core->known_parts; core->known_parts &= core->known_parts - 1)
        memset((char *)to + __builtin_ctzll(core->known_parts) * PART_SIZE, 0, PART_SIZE);
    return to;
}
