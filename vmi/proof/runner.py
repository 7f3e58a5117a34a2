# SPDX-License-Identifier: GPL-2.0-only
"""Execute code on a stage instruction by instruction, and say where it ended and what it did on the way.

The original runs until control is where the patched kernel still has its own code; the moved code runs
until it arrives at the same place. What a processor would show nobody (a lost INVLPG, a NOP that ends an
interrupt shadow) shows in the record of a run: the instructions, fillers and jumps left out, each with
whether an interrupt could have come in before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from iced_x86 import Instruction, Mnemonic, Register

from vmi.patcher.adaptorcode import same
from vmi.proof.code import CodeView, Kind, Step
from vmi.proof.stage import Exception_, Stage
from vmi.x86 import U32, Eflags, Seg, Vector

# Instructions that the emulator's processor doesn't have: noted, with results where they give some.
_RESULTS = {Mnemonic.RDPMC: 2, Mnemonic.RDTSCP: 3}
_INTERRUPTIBLE = int(Eflags.IF)


class End(Enum):
    """How a run ended."""

    ARRIVED = "it arrived"
    FAULT = "an exception"
    LEAVES = "an instruction that leaves for another segment or level"
    LOST = "it came to where no code is"
    ENDLESS = "it went on and on"


@dataclass(slots=True)
class Run:
    """One run: ``at`` is where control is in the end, ``last`` the last instruction that was executed."""

    end: End = End.ENDLESS
    at: int = 0
    last: Step | None = None
    record: list[tuple[Step, bool]] = field(default_factory=list)
    fault: Exception_ | None = None
    path: list[int] = field(default_factory=list)


class Runner:
    """Runs one image's code on its stage. ``calls`` and ``returned`` serve the connected kernel only."""

    def __init__(self, view: CodeView, stage: Stage) -> None:
        self.view = view
        self.stage = stage
        self.on_step: Callable[[Step], None] | None = None

    def run(self, arrived: Callable[[int], bool], limit: int) -> Run:
        """Run from EIP until ``arrived`` is true of it, outside an interrupt shadow.

        ``limit`` is in instructions, repetitions of a string instruction counted each.
        """
        run = Run()
        cpu, view = self.stage.cpu, self.view
        open_before = False
        repeating = False
        for _ in range(limit):
            eip = run.at = cpu.eip
            step = view.step(eip)
            if step is None:
                run.end = End.LOST
                return run
            if self.on_step is not None:
                self.on_step(step)
            run.path.append(eip)
            kind = step.kind
            open_before |= bool(cpu.system_flags & _INTERRUPTIBLE) and not cpu.irq_shadow
            if kind not in (Kind.FILLER, Kind.JUMP) and not repeating:
                run.record.append((step, open_before))
                open_before = False
            if kind == Kind.END:
                run.end = End.LEAVES
                return run
            fault = self._perform(step)
            if fault is not None:
                run.end, run.fault = End.FAULT, fault
                return run
            run.last = step
            at = cpu.eip
            repeating = step.repeated and at == eip
            if not step.shadow and not repeating:
                cpu.irq_shadow = False  # it holds for one instruction; the emulator's PAUSE hands it on
            if not repeating and not step.shadow and arrived(at):
                run.end, run.at = End.ARRIVED, at
                return run
        run.at = cpu.eip
        return run

    # -- one instruction --------------------------------------------------------------------

    def _perform(self, step: Step) -> Exception_ | None:
        """Execute one instruction, and give the exception that came instead (or from an INT)."""
        kind, stage, cpu = step.kind, self.stage, self.stage.cpu
        if kind in (Kind.TO_CONTROL, Kind.TO_DEBUG):
            return self._special_register(step)
        if kind == Kind.NOTED:
            self._note(step)
        fault = stage.run_one()
        if fault is not None:
            vector, is_int, _ = fault
            known = is_int or step.undefined
            if vector == Vector.UD and not known:
                self._unknown(step)
            elif vector != Vector.DB or is_int:
                return fault
        if kind == Kind.TO_TABLE:
            self._put_table_back(step)
        if cpu.system_flags & Eflags.TF:
            cpu.system_flags &= ~Eflags.TF
            stage.log.append(("trap flag",))
        return None

    def _special_register(self, step: Step) -> Exception_ | None:
        stage, cpu = self.stage, self.stage.cpu
        value = cpu.gpr(step.source)
        name = "cr" if step.kind == Kind.TO_CONTROL else "dr"
        stage.log.append((name, step.number, value))
        if step.kind == Kind.TO_CONTROL and stage.refuses(4, step.number, value):
            return int(Vector.GP), False, 0
        self._skip(step)
        return None

    def _skip(self, step: Step) -> None:
        self.stage.cpu.eip = step.next
        self.stage.cpu.irq_shadow = False

    def _note(self, step: Step) -> None:
        name = step.key.hex() if not same(step.insn.mnemonic, Mnemonic.INVLPG) else "invlpg"
        address = self._effective(step.insn) if name == "invlpg" else 0
        flags = self.stage.cpu.system_flags & _INTERRUPTIBLE
        self.stage.log.append((name, address, flags))

    def _effective(self, insn: Instruction) -> int:
        """The linear address of a memory operand."""
        cpu = self.stage.cpu
        value = int(insn.memory_displacement)
        if not same(insn.memory_base, Register.NONE):
            value += self._register(insn.memory_base)
        if not same(insn.memory_index, Register.NONE):
            value += self._register(insn.memory_index) * insn.memory_index_scale
        segment = cpu.segment(_SEGMENTS[insn.memory_segment])
        return value + segment.base & U32

    def _register(self, register: int) -> int:
        if register >= Register.EAX:
            return self.stage.cpu.gpr(register - Register.EAX)
        return self.stage.cpu.gpr(register - Register.AX) & 0xFFFF

    def _unknown(self, step: Step) -> None:
        """Stand in for an instruction that this processor hasn't got."""
        stage, cpu = self.stage, self.stage.cpu
        stage.log.append((step.key.hex(), cpu.ecx))
        results = _RESULTS.get(step.insn.mnemonic, 0)
        if results:
            answer = stage.answer(5, cpu.ecx)
            cpu.eax, cpu.edx = answer & U32, answer >> 32
            if results == 3:
                cpu.ecx = answer >> 16 & U32
        self._skip(step)

    def _put_table_back(self, step: Step) -> None:
        cpu = self.stage.cpu
        old = self.stage.first_idt if step.number else self.stage.first_gdt
        new = cpu.idt if step.number else cpu.gdt
        self.stage.log.append(("idt" if step.number else "gdt", new.base, new.limit))
        if step.number:
            cpu.idt = old
        else:
            cpu.gdt = old


_SEGMENTS = {
    Register.ES: Seg.ES, Register.CS: Seg.CS, Register.SS: Seg.SS,
    Register.DS: Seg.DS, Register.FS: Seg.FS, Register.GS: Seg.GS,
}  # fmt: skip
