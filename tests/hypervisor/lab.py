# SPDX-License-Identifier: GPL-2.0-only
"""One guest on three footings: on the bare machine, de-privileged without a ROM, and behind the ROM.

The same source runs on each. A sensitive instruction is written as a macro, ``@cli`` and so on: the
instruction itself natively and under full virtualization, a call of the ROM where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iced_x86 import Decoder, Mnemonic

from tests.native.guest import CODE, CODE3, DATA3, DONE, STACK, USER_STACK, Guest
from vmi import abi
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.full import take_over
from vmi.hypervisor.personalities import attach
from vmi.native.cpuid import I686, CpuModel
from vmi.native.machine import Outcome
from vmi.rom.build import Rom, build
from vmi.rom.flavours import vmware
from vmi.x86 import ARITHMETIC_FLAGS, Eflags, Seg

ROM = build("vmware")
ROM_AT = 0x100000  # where the guest has copied it to
MODES = ("native", "full", "paravirt")
RAM = 2 << 20
U32 = 0xFFFFFFFF

# User code that runs what is silent on ring 1, and right as it stands on ring 3; INT 30h ends it at ``back``.
SILENT_USER = f"""
    start:  push {DATA3}
            push {USER_STACK}
            push 0x202
            push {CODE3}
            push {{user}}
            iretd
    user:   pushfd
            pop ebx
            mov ecx, cs
            int 0x30
    back:   {DONE}
"""

GPRS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")

# macro: what it is natively, and behind a ROM; calls are written by name
_MACROS = {
    "cli": ("cli", "call DisableInterrupts"),
    "sti": ("sti", "call EnableInterrupts"),
    "pushf": ("pushfd", "push eax\ncall GetInterruptMask\nxchg eax, [esp]"),
    "popf": ("popfd", "xchg eax, [esp]\ncall SetInterruptMask\npop eax"),
    "iret": ("iretd", "call IRET"),
    "halt": ("sti\nhlt", "pushad\ncall Halt\npopad"),
}
_SILENT = {Mnemonic.PUSHFD, Mnemonic.POPFD, Mnemonic.IRETD}


def expand(source: str, mode: str, rom: Rom = ROM) -> str:
    """Macros replaced, and ROM calls by their addresses."""

    def macro(match: re.Match[str]) -> str:
        return _MACROS[match[1]][mode == "paravirt"]

    def call(match: re.Match[str]) -> str:
        return f"call {ROM_AT + rom.offset(match[1]):#x}" if match[1] in abi.BY_NAME else match[0]

    return re.sub(r"\bcall (\w+)", call, re.sub(r"@(\w+)", macro, source))


class Lab(Guest):
    """A guest in one of :data:`MODES`; ``domain`` is None natively.

    :param silent: labels where a breakpoint is planted, or None for every pushf, popf and iret.
    ``sites`` are the addresses of its breakpoints under full virtualization.

    :param taken: False leaves it on ring 0 still, with the hypervisor standing by.
    :param mmu: how the hypervisor manages memory, if there is one.
    :param client: the kernel speaks the interface and knows its ring; without it, it was patched.
    """

    domain: Domain | None = None

    def __init__(
        self,
        source: str,
        handlers: Mapping[int, str] | None = None,
        mode: str = "native",
        *,
        rom: Rom = ROM,
        silent: Iterable[str] | None = None,
        taken: bool = True,
        client: bool = False,
        model: CpuModel = I686,
        cpus: int = 1,
        mmu: str = "direct",
        ram: int = RAM,
    ) -> None:
        super().__init__(expand(source, mode, rom), handlers, ram=ram, model=model, cpus=cpus)
        self.mmu = mmu
        self.mode, self.rom, self.client = mode, rom, client
        self.sites = self._sites(silent)
        if mode == "paravirt":
            self.memory.write(ROM_AT, rom.image)
            self.domain = attach(self.machine, rom.image, mmu)
        if taken:
            self.take()

    def take(self) -> None:
        """De-privilege the guest at its present state."""
        if self.mode == "full":
            self.domain = take_over(self.machine, self.mmu)
            self.domain.breakpoints.plant(self.sites)
        elif self.mode == "paravirt":
            eip, eax, esp = self.cpu.eip, self.cpu.eax, self.cpu.esp
            assert self.initialise() == 0
            self.cpu.eip, self.cpu.eax, self.cpu.esp = eip, eax, esp
            assert self.domain is not None
            if not self.client:
                self.domain.privilege.shown_ring = 0

    def initialise(self, at: int = ROM_AT) -> int:
        """Let the guest call VMI_Init; gives its answer."""
        back = self.cpu.eip
        self.push(back)
        self.cpu.eip = at + abi.INIT_OFFSET
        self.step_to(back)
        return self.cpu.eax

    def step_to(self, *addresses: int, steps: int = 200) -> bool:
        """Run instruction by instruction to one of the addresses or the run's end; False if neither comes."""
        self.machine.end = None
        for _ in range(steps):
            self.cpu.run(1)
            if self.cpu.eip in addresses or self.machine.end is not None:
                return True
        return False

    def _sites(self, silent: Iterable[str] | None) -> list[int]:
        if silent is not None:
            return [self.labels[label] for label in silent]
        code = Decoder(32, self.assembled.code, ip=CODE)
        return [instruction.ip for instruction in code if instruction.mnemonic in _SILENT]

    def push(self, *words: int) -> None:
        """Push dwords, first one first."""
        for word in words:
            self.cpu.esp -= 4
            self.memory.put_u32(self.cpu.segment(Seg.SS).base + self.cpu.esp, word)

    def word(self, offset: int) -> int:
        """A word of the ROM's data page."""
        assert self.rom.data_page is not None
        return self.u32(ROM_AT + self.rom.data_page + offset)

    def set_word(self, offset: int, value: int) -> None:
        """Write a word of the ROM's data page, as the guest could."""
        assert self.rom.data_page is not None
        self.memory.put_u32(ROM_AT + self.rom.data_page + offset, value)

    @property
    def virtual_if(self) -> bool:
        """Interrupts are on, as the guest sees it."""
        flags = self.cpu.system_flags if self.domain is None else self.domain.privilege.frame_flags()
        return bool(flags & Eflags.IF)


@dataclass(frozen=True)
class Called:
    """What a VMI call left: registers by name, and whether it came back to its caller."""

    registers: dict[str, int]
    returned: bool


LANDING = CODE + 0x800
SITE = LANDING - 5  # of the call


def call(lab: Lab, name: str, *stack: int, **registers: int) -> Called:
    """Make one VMI call, by CALL to its entry; stack arguments first to last."""
    cpu = lab.cpu
    for register, value in registers.items():
        cpu.set_gpr(GPRS.index(register), value)
    cpu.esp = STACK
    lab.push(*reversed(stack))
    at = cpu.segment(Seg.CS).base + SITE
    covered = lab.memory.read(at, 5)
    place_call(lab, name)
    cpu.eip = SITE
    lab.step_to(LANDING)
    cpu.write_memory(at, covered)
    return Called({register: cpu.gpr(i) for i, register in enumerate(GPRS)}, cpu.eip == LANDING)


def place_call(lab: Lab, name: str) -> None:
    """Put CALL to a call's entry at SITE."""
    target = ROM_AT + lab.rom.offset(name) - lab.cpu.segment(Seg.CS).base - LANDING
    lab.cpu.write_memory(lab.cpu.segment(Seg.CS).base + SITE, b"\xe8" + (target & U32).to_bytes(4, "little"))


def flags(lab: Lab, mask: int = ARITHMETIC_FLAGS) -> int:
    """EFLAGS as the guest sees them, between runs."""
    value = lab.cpu.eflags if lab.domain is None else lab.domain.privilege.frame_flags()
    return value & mask


def exit_value(lab: Lab, ms: int = 1000) -> int:
    """Run to the guest's end through the debug-exit port."""
    end = lab.run(ms)
    assert end.outcome is Outcome.DEBUG_EXIT, end
    return end.value


__all__ = ["ROM", "ROM_AT", "Called", "Lab", "call", "exit_value", "expand", "flags", "vmware"]
