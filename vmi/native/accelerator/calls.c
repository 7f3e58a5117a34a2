// SPDX-License-Identifier: GPL-2.0-only
/* Calls from a ROM's gates that are done without Python: what vmi/hypervisor does for them. See core.h. */

#include "core.h"

enum { ENV_DS_BASE = 264, ENV_CR3 = 448, FLUSH_GLOBAL = 2 };

bool serve_call(struct core *core, uint32_t gate)
{
    struct straight *s = core->straight;
    uint32_t eax = AT(core->env, ENV_EAX, uint32_t);
    int service = 0;

    while (s->served_gates[service] != gate)
        if (++service == SERVICES)
            return false;
    switch (service) {
    case LOAD_CR3:
        on_update_cr3(core->env, eax);
        if (s->cr3)
            *s->cr3 = eax;
        break;
    case FLUSH_PAGE:
        s->flush_page(core->cpu, AT(core->env, ENV_DS_BASE, uint32_t) + eax);
        break;
    case FLUSH_ALL:
        if (eax & FLUSH_GLOBAL)
            lib_flush(core->cpu);
        else if (eax)
            on_update_cr3(core->env, AT(core->env, ENV_CR3, uint32_t));
        break;
    }
    s->entered++;
    s->served[service]++;
    return true;
}
