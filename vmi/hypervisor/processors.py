# SPDX-License-Identifier: GPL-2.0-only
"""The virtual CPUs of a domain: what is kept of one while another one has the machine's CPU.

All of them run the one copy of the ROM, so a ROM needs no notion of several CPUs: its data page is a page of
whichever CPU runs, and the words in it are exchanged with the CPU.

A CPU that is started at run time begins in one of two ways. If the guest has given a state for it
(SetInitialAPState), it begins there, on ring 1 like the one that called VMI_Init. If not, it begins in real
mode as a start-up message says, where there are no rings: it is left alone for its few instructions to
32-bit protected mode, and de-privileged there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vmi import abi
from vmi.hypervisor.personality import Personality
from vmi.hypervisor.timer import VirtualTimer, WallClock
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.native.machine import Machine, Outcome
from vmi.native.msr import EFER
from vmi.native.registers import TableRegister
from vmi.native.stamped import Stamped
from vmi.x86 import GPR32, Cr0, Eflags, GuestFault, Seg, Vector

_DATA_SEGMENTS = ("ds", "es", "fs", "gs")

_NO_TABLE = TableRegister(0, 0)

#: A state for a CPU to begin in: the fields of the ABI's structure by name.
InitialState = dict[str, int]


def parse_state(data: bytes) -> InitialState:
    """The state that SetInitialAPState was given, of :data:`vmi.abi.AP_STATE_SIZE` bytes."""
    return {
        each.name: int.from_bytes(data[each.offset : each.offset + each.size], "little")
        for each in abi.AP_STATE
    }


@dataclass
class Virtual(Stamped):
    """One virtual CPU.

    :ivar active: its kernel is de-privileged.
    :ivar idt: the IDT that its guest has loaded.
    :ivar words: the ROM's data page as it sees it.
    :ivar paging: what its MMU keeps of it.
    :ivar initial: the state that it begins in, None for real mode.
    """

    timer: VirtualTimer
    active: bool = False
    idt: TableRegister = _NO_TABLE
    words: bytes = field(default=b"", repr=False)
    paging: Any = field(default=None, repr=False)
    initial: InitialState | None = field(default=None, repr=False)


class Processors(Stamped):
    """All virtual CPUs of a machine, by number, which is the APIC ID.

    :param activate: de-privileges the CPU that runs, or hands it back to itself.
    """

    def __init__(
        self, machine: Machine, rom: Personality, vcpu: VirtualCpu, activate: Callable[[bool], None]
    ) -> None:
        self._machine = machine
        self._rom = rom
        self._vcpu = vcpu
        self._activate = activate
        lapics = machine.board.lapics or (None,)
        wall = WallClock(machine)
        self.all = tuple(
            Virtual(VirtualTimer(machine, rom.tell, wall, lapics[number])) for number in range(machine.cpus)
        )
        self.current = self.all[0]

    def __repr__(self) -> str:
        return f"<Processors {sum(each.active for each in self.all)} of {len(self.all)} de-privileged>"

    def leave(self, *, active: bool) -> None:
        """Another processor takes over the machine's CPU; ``active``: this one is de-privileged."""
        left = self.current
        left.active, left.idt = active, self._vcpu.privilege.virtual_idt
        left.paging = self._vcpu.mmu.leave()  # before the words are exchanged, which tell it of entries
        left.words = self._rom.save_words()

    def enter(self, number: int) -> None:
        """The machine's CPU holds the state of this processor now."""
        entered = self.all[number]
        self._vcpu.privilege.virtual_idt = entered.idt
        self._vcpu.privilege.running_task = self._machine.cpu.tr
        self._rom.load_words(entered.words)
        self._activate(entered.active)
        self._vcpu.mmu.enter(entered.paging)
        if entered.active:
            entered.timer.publish()

    def give_state(self, number: int, state: InitialState) -> None:
        """The state that a CPU begins in from now on; a number that no CPU has is ignored."""
        if number < len(self.all):
            self.all[number].initial = state

    def begin(self) -> bool:
        """The CPU that runs begins, after its start-up message; False if it does so in real mode."""
        self._rom.load_words(b"")
        self._activate(False)
        self._vcpu.mmu.enter(None)
        self._vcpu.privilege.virtual_idt = _NO_TABLE
        state = self.current.initial
        if state is None:
            return False
        self._activate(True)
        self._vcpu.mmu.start()
        try:
            self._enter(state)
        except GuestFault as fault:
            number = self.all.index(self.current)
            self._machine.finish(
                Outcome.CRASHED,
                f"the guest gave processor {number} a state that it can't begin in: loading it is a "
                f"#{Vector(fault.vector).name} with error {fault.error:#x}",
            )
        self.current.timer.publish()
        return True

    def _enter(self, state: InitialState) -> None:
        """Load a state as ring 0 would, each register with the checks of its own instruction."""
        vcpu, cpu, privilege = self._vcpu, self._machine.cpu, self._vcpu.privilege
        if state["efer"]:
            vcpu.write_msr(EFER, state["efer"])
        vcpu.write_cr(4, state["cr4"])
        vcpu.write_cr(3, state["cr3"])
        vcpu.write_cr(2, state["cr2"])
        if not state["cr0"] & Cr0.PE:
            raise GuestFault(Vector.GP)
        vcpu.write_cr(0, state["cr0"])
        vcpu.load_gdt(state["gdtr_base"], state["gdtr_limit"])
        vcpu.load_idt(state["idtr_base"], state["idtr_limit"])
        code = privilege.descriptor(state["cs"] & ~3)
        if not code.is_code or code.dpl:
            raise GuestFault(Vector.GP, state["cs"] & 0xFFFC)
        if not code.present:
            raise GuestFault(Vector.NP, state["cs"] & 0xFFFC)
        cpu.set_segment(Seg.CS, privilege.loaded(state["cs"] & ~3, code))
        vcpu.load_segment(Seg.SS, state["ss"] & ~3)
        for name in _DATA_SEGMENTS:
            vcpu.load_segment(Seg[name.upper()], state[name])
        vcpu.load_ldt(state["ldtr"])
        privilege.restore_flags(state["eflags"] | Eflags.ONE)
        for number, name in enumerate(GPR32):
            cpu.set_gpr(number, state[name])
        cpu.eip = state["eip"]
        privilege.mirror.registers(privilege.virtual_idt)
        vcpu.mirror_fast_return()
