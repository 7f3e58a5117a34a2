# SPDX-License-Identifier: GPL-2.0-only
"""All that a guest could notice of a machine's state, as it looks to the guest: equal on every footing."""

from __future__ import annotations

from tests.hypervisor.lab import GPRS, RAM, ROM_AT, Lab
from tests.native.guest import GDT, PAGES
from vmi.x86 import Cr0, Descriptor, Seg

LDT, LDT_SIZE = 0x5000, 0x40
_TABLES = ((GDT, 0x1000), (LDT, LDT_SIZE))
_HIDDEN = 0xF0DE00  # of a descriptor's second dword: without DPL, accessed bit, and what base and limit hold


def snapshot(lab: Lab) -> dict[str, object]:
    """Registers and memory, on whatever ring the guest runs."""
    cpu, view = lab.cpu, lab.machine.privilege if lab.domain is None else lab.domain.privilege
    state: dict[str, object] = {name: hex(cpu.gpr(i)) for i, name in enumerate(GPRS)}
    state |= {f"cr{n}": hex(cpu.cr(n)) for n in (0, 2, 3, 4)} | {
        f"dr{n}": hex(cpu.dr(n)) for n in (0, 1, 2, 3, 6, 7)
    }
    state |= {"eip": hex(cpu.eip), "eflags": hex(view.frame_flags()), "cpl": view.cpl()}
    state |= {"gdt": cpu.gdt, "idt": view.idt(), "shadow": cpu.irq_shadow, "halted": lab.machine.halted}
    for seg in Seg:
        held = cpu.segment(seg)
        selector = view.frame_selector(held.selector) if seg in (Seg.CS, Seg.SS) else held.selector
        null = not selector & 0xFFFC and cpu.cr(0) & Cr0.PE and not view.frame_flags() & 1 << 17
        hidden = None if null else (held.base, held.limit, held.flags & _HIDDEN)
        state[seg.name] = (selector, hidden)
    for name, system in (("ldt", cpu.ldt), ("tr", cpu.tr)):
        state[name] = (system.selector, system.base, system.limit)
    state["memory"] = memory(lab)
    return state


def memory(lab: Lab) -> bytes:
    """RAM below the ROM's copy, with DPL 0 where the guest wrote DPL 0, and all segments accessed."""
    data = bytearray(lab.memory.read(0, min(RAM, ROM_AT)))
    for table, size in _TABLES:
        for at in range(table, table + size, 8):
            low, high = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
            entry = Descriptor(low, high)
            if entry.is_segment:
                high = entry.with_dpl(0).high if entry.dpl == 1 else high
                data[at + 4 : at + 8] = (high | 0x100).to_bytes(4, "little")
    for at in range(PAGES, PAGES + 0x3000, 4):
        data[at] |= 0x20  # the hypervisor's looks at the guest's tables mark them accessed
    for table, _ in _TABLES:  # so does it descriptors, where the CPU core does not
        data[PAGES + 0x1000 + 4 * (table >> 12)] |= 0x40
    if lab.domain is not None:  # breakpoints show to who reads the code
        for at, byte in lab.domain.breakpoints.originals().items():
            if at < len(data) and data[at] == 0xCC:
                data[at] = byte
    return bytes(data)


def differences(left: dict[str, object], right: dict[str, object]) -> dict[str, object]:
    """What is not the same, for people to read; memory by address."""
    found: dict[str, object] = {}
    for key, value in left.items():
        if value == right[key]:
            continue
        if isinstance(value, bytes):
            other = right[key]
            assert isinstance(other, bytes)
            places = [hex(i) for i in range(len(value)) if value[i] != other[i]]
            found[key] = [(at, value[int(at, 16)], other[int(at, 16)]) for at in places[:16]]
        else:
            found[key] = (value, right[key])
    return found
