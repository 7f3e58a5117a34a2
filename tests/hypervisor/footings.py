# SPDX-License-Identifier: GPL-2.0-only
"""The kernel that walks into the processor's corners, de-privileged in each way.

The same image runs everywhere but for CLI, STI and IRET, which are calls of the ROM where there is one.
Natively they have prefixes without effect then, so that everything lies at the same address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from iced_x86 import Decoder, Mnemonic, OpKind, Register

from tests.native.corners import BASE, STACK, Case, Event, Seen, build, parse
from vmi import abi
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.full import take_over
from vmi.hypervisor.personalities import attach
from vmi.native.cpuid import CpuModel
from vmi.native.machine import DEFAULT_MODEL, Machine, Outcome
from vmi.rom.build import build as build_rom
from vmi.x86 import IF_BIT, Eflags

ROM = build_rom("vmware")
ROM_AT = 0x1C0000
RAM = 4 << 20
LIMIT_NS = 3 * 10**9
_CALLS = {"cli": "DisableInterrupts", "sti": "EnableInterrupts", "iretd": "IRET"}
_OPCODES = {"cli": 0xFA, "sti": 0xFB, "iretd": 0xCF}
_SILENT = frozenset(
    getattr(Mnemonic, name)
    for name in (
        "PUSHFD", "PUSHF", "POPFD", "POPF", "IRETD", "IRET", "RETF", "LAR", "LSL", "VERR", "VERW", "SGDT",
        "SIDT", "SLDT", "STR", "SMSW", "CPUID",
    )
)  # fmt: skip
_SHOWN = {Register.CS, Register.SS}


@dataclass(frozen=True)
class Footing:
    """How the kernel is run.

    :ivar rom: it calls a ROM, else it is virtualized in full.
    :ivar client: it speaks the interface, and sees the ring that it runs on.
    """

    name: str
    rom: bool = False
    client: bool = False
    mmu: str = "direct"

    def __str__(self) -> str:
        return self.name


FOOTINGS = (
    Footing("full"),
    Footing("full, shadow", mmu="shadow"),
    Footing("patched", rom=True),
    Footing("patched, shadow", rom=True, mmu="shadow"),
    Footing("client", rom=True, client=True),
)


def _replaced(code: str, calls: bool) -> str:
    """CLI, STI and IRETD as calls, or as long as calls."""

    def longer(match: re.Match[str]) -> str:
        name = match[0]
        if calls:
            return f"call {ROM_AT + ROM.offset(_CALLS[name]):#x}"
        return f".byte 0x3e,0x3e,0x3e,0x3e,{_OPCODES[name]}"

    return re.sub(r"(?<![\w@])(?:cli|sti|iretd)(?![\w@:])", longer, code)


def prepared(cases: Sequence[Case], *, calls: bool) -> list[Case]:
    """The cases with kernel code that calls, or that has room for calls; user code stays as it is."""
    return [replace(case, code=_replaced(case.code, calls)) for case in cases]


def silent(image: bytes, labels: dict[str, int]) -> list[int]:
    """Where breakpoints go: every instruction of the 32-bit code that ring 1 does silently in its own way."""
    data = {labels["gdtr"], labels["idtr"]}
    ends = sorted({*labels.values(), BASE + 0x10000})
    found = []
    for start, end in pairwise(ends):
        if start in data:
            continue
        for i in Decoder(32, image[start - BASE : end - BASE], ip=start):
            source = i.op1_register if i.mnemonic == Mnemonic.MOV else i.op0_register
            reads = i.mnemonic in (Mnemonic.MOV, Mnemonic.PUSH) and source in _SHOWN
            far = i.op0_kind in (OpKind.FAR_BRANCH32, OpKind.FAR_BRANCH16) or i.is_call_far_indirect
            if i.mnemonic in _SILENT or reads or (far and i.mnemonic == Mnemonic.CALL):
                found.append(i.ip)
    return found


def _seen(machine: Machine, labels: dict[str, int]) -> list[Seen]:
    parts = machine.console.data.split(b"#")[1:]
    return [Seen([parse(line) for line in part.splitlines()], labels, n) for n, part in enumerate(parts)]


def natively(cases: Sequence[Case], model: CpuModel = DEFAULT_MODEL) -> list[Seen]:
    """What cases give on the bare machine."""
    return run_on(None, cases, model)


def run_on(footing: Footing | None, cases: Sequence[Case], model: CpuModel = DEFAULT_MODEL) -> list[Seen]:
    """What cases give on a footing."""
    calls = footing is not None and footing.rom
    image, labels = build(prepared(cases, calls=calls))
    machine = Machine(ram=RAM, model=model)
    machine.load(image)
    sites = silent(image, labels)
    if footing is not None and footing.rom:
        _call_init(machine, footing, sites)
    elif footing is not None:
        take_over(machine, footing.mmu)
    end = machine.run(LIMIT_NS)
    seen = _seen(machine, labels)
    assert end.outcome is Outcome.DEBUG_EXIT, (end.reason, cases[len(seen) - 2 : len(seen)])
    return seen[: len(cases)]


def _call_init(machine: Machine, footing: Footing, sites: list[int]) -> None:
    cpu = machine.cpu
    machine.memory.write(ROM_AT, ROM.image)
    domain: Domain = attach(machine, ROM.image, footing.mmu)
    back, cpu.esp, cpu.ebx = cpu.eip, STACK - 4, 0
    machine.memory.put_u32(cpu.esp, back)
    cpu.eip = ROM_AT + abi.INIT_OFFSET
    while cpu.eip != back:
        cpu.run(1)
    assert cpu.eax == 0 and domain.active
    domain.breakpoints.plant(sites)
    domain.privilege.iopl_from_frames = True
    if not footing.client:
        domain.privilege.shown_ring = 0


def as_known(seen: Seen) -> list[Event]:
    """Events without what de-privileged code may see: interrupts are always on in user code."""
    return [_user_interrupts_on(event) for event in seen.events]


def _user_interrupts_on(event: Event) -> Event:
    words = list(event.words)
    at = 2 if event.error is None else 3
    user = words[at] & Eflags.VM or words[at - 1] & 3 == 3
    if user:
        words[at] |= IF_BIT
    return event._replace(words=tuple(words))


def with_ring_0(event: Event, selectors: Sequence[int]) -> Event:
    """An event as ring 0 would see it: kernel selectors with RPL 1 are taken for those with RPL 0."""
    shown = {selector | 1: selector for selector in selectors}
    values = [shown.get(value, value) if isinstance(value, int) else value for value in event]
    plain = Event._make(values)  # type: ignore[arg-type]
    return plain._replace(words=tuple(shown.get(word, word) for word in event.words))
