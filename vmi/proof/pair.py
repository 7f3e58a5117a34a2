# SPDX-License-Identifier: GPL-2.0-only
"""One trial of one window: the original against the moved code, natively and connected to a ROM.

Natively everything must agree to the last bit, but for return addresses, which lead to the same place.
Connected to a ROM, the record of instructions is another one, the stack below ESP is scratch, and a register
or the arithmetic flags may differ if nobody reads them any more: to see that, both go on until the kernel
has overwritten them, and neither memory nor devices may have noticed by then. The interface allows calls
to leave more registers undefined than the ROM does, so in every other trial those are filled with noise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from iced_x86 import FlowControl

from vmi.abi import Call, Convention
from vmi.proof import compare
from vmi.proof.code import CodeView, Kind, Step
from vmi.proof.connect import Connected
from vmi.proof.runner import End, Run, Runner
from vmi.proof.setting import Setting, mix
from vmi.proof.windows import Found
from vmi.sitetable import SiteRecord
from vmi.x86 import ARITHMETIC_FLAGS, GPR32, U32, Vector

LIMIT = 400  # instructions of the original, repetitions counted
FURTHER = 128  # instructions after the window within which a dead register is overwritten
_SLOWER = 32  # connected instructions for one of the original
_SCRATCH = 256  # bytes below ESP that connected code may use
_MAY_DIFFER = frozenset(("eax", "ecx", "edx", "flags"))
_WIDTHS = {"u8": 8, "u16": 16}
_NUMBERS = {name: number for number, name in enumerate(GPR32)}


class Territory:
    """Where the original must not be left: the inside of windows, and sites that are reached by edges."""

    def __init__(self, windows: Iterable[Found], edges: Iterable[SiteRecord], view: CodeView) -> None:
        self.windows = sorted((w.start, w.end) for w in windows)
        self.starts = [start for start, _ in self.windows]
        self.edge_slots: dict[int, int] = {}
        self.edges: set[int] = set()
        for record in edges:
            self.edge_slots[record.slot] = record.site
            step = view.step(record.site)
            self.edges.add(record.site)
            if step is not None and step.shadow:
                self.edges.add(step.next)

    def outside(self, address: int) -> bool:
        """True where the patched kernel has the original's code."""
        if address in self.edges:
            return False
        at = bisect_right(self.starts, address) - 1
        return at < 0 or address == self.starts[at] or address >= self.windows[at][1]


@dataclass(slots=True)
class Outcome:
    """What a trial showed: ``wrong`` is empty when both agree."""

    wrong: str = ""
    later: bool = False
    open: bool = False


@dataclass(slots=True)
class Pair:
    """The original's runner and that of a patched image in one of its states."""

    original: Runner
    moved: Runner
    territory: Territory
    connected: Connected | None = None
    _tops: list[int] = field(default_factory=list)
    _seen: list[int] = field(default_factory=list)  # ESP whenever the original was looked at
    _undefined: int = 0  # arithmetic flags that the processor's manual says nothing of

    def compare(self, start: int, setting: Setting, first: Run) -> Outcome:
        """Run the moved code from a window's start and compare with what the original did."""
        stage = self.moved.stage
        stage.begin(setting, start)
        self._tops.clear()
        self.moved.on_step = None
        if self.connected is not None:
            self.moved.on_step = _Watch(self.moved, self.connected, setting, self._tops)
        run = self._follow(first)
        wrong = self._ending(first, run)
        if not wrong and self.connected is None:
            wrong = self._all(first, run)
        elif self.connected is not None:
            return self._connected(setting, first, run, wrong)
        return Outcome(wrong)

    def _follow(self, first: Run) -> Run:
        """Run the moved code to where the original is."""
        goal = first.at if first.end is End.ARRIVED else None
        slower = 2 if self.connected is None else _SLOWER
        return self.moved.run(lambda at: at == goal, 64 + slower * len(first.path))

    # -- natively ---------------------------------------------------------------------------

    def _ending(self, first: Run, run: Run) -> str:
        if first.end is not run.end:
            where = f"at {run.at:#x} " + ("" if run.fault is None else f"({_fault(run.fault)}) ")
            expected = f"{first.end.value} at {first.at:#x}"
            expected += "" if first.fault is None else f" ({_fault(first.fault)})"
            return f"expected {expected}, got {run.end.value} {where}instead"
        if first.fault != run.fault and first.fault is not None and run.fault is not None:
            return f"expected {_fault(first.fault)} at {first.at:#x}, got {_fault(run.fault)} at {run.at:#x}"
        if self.connected is None and first.end in (End.FAULT, End.LEAVES):
            old, new = self.original.view.step(first.at), self.moved.view.step(run.at)
            if old is None or new is None or old.key != new.key:
                where = f"{run.at:#x} comes from another instruction than at {first.at:#x}"
                return f"{first.end.value} at {where}"
        return ""

    def _all(self, first: Run, run: Run) -> str:
        wrong = _record(first.record, run.record) or self._return_address(first, run)
        if wrong:
            return wrong
        one, two = self.original.stage, self.moved.stage
        if one.log != two.log:
            return _log(one.log, two.log)
        return self._registers() or self._system() or self._memory()

    def _registers(self) -> str:
        found = compare.registers(self.original.stage, self.moved.stage)
        return ", ".join(f"{name} is {b:#x} instead of {a:#x}" for name, (a, b) in found.items())

    def _system(self) -> str:
        return ", ".join(compare.system(self.original.stage, self.moved.stage))

    def _memory(self) -> str:
        for found in compare.memory(self.original.stage, self.moved.stage):
            return str(found)
        return ""

    def _return_address(self, first: Run, run: Run) -> str:
        """Check the return address that a call at the window's end pushed, and make both the same."""
        last = first.last
        if first.end is not End.ARRIVED or last is None or last.kind is not Kind.CALL:
            return ""
        esp = self.original.stage.cpu.gpr(4)
        if esp != self.moved.stage.cpu.gpr(4):
            return ""
        expected = int.from_bytes(self.original.stage.read(esp, 4), "little")
        found = int.from_bytes(self.moved.stage.read(esp, 4), "little")
        if expected == found:
            return ""
        if not self._leads(found, expected):
            return f"the call returns to {found:#x}, which does not lead to {expected:#x}"
        self.moved.stage.write_word(esp, expected)
        return ""

    def _leads(self, at: int, goal: int) -> bool:
        """True when code at ``at`` does nothing but go to ``goal``."""
        for _ in range(16):
            if at == goal or self.territory.edge_slots.get(at) == goal:
                return True
            step = self.moved.view.step(at)
            if step is None or step.kind not in (Kind.JUMP, Kind.FILLER):
                return False
            at = step.target if step.kind is Kind.JUMP else step.next
        return False

    # -- connected --------------------------------------------------------------------------

    def _connected(self, setting: Setting, first: Run, run: Run, wrong: str) -> Outcome:
        if first.end is End.FAULT or run.end is End.FAULT:
            wrong = wrong or self._log(first)
            if wrong and self._stack_fault(run):
                return Outcome(open=True)
            return Outcome(wrong)  # inside an adaptor other registers are on their way
        wrong = wrong or self._return_address(first, run) or self._log(first) or self._system()
        self._undefined = 0
        self._seen = []
        different = self._different(first)
        if wrong or not different:
            return Outcome(wrong or self._scratch_memory())
        if not different <= _MAY_DIFFER or first.end is End.LEAVES:
            return Outcome(self._registers())
        return self._further(different)

    def _different(self, first: Run) -> set[str]:
        """The registers that differ and may be read.

        Flags aren't where the original's last instruction leaves them undefined or loads them, nor behind a
        return or an indirect call: no calling convention carries them across.
        """
        for at in first.path:
            step = self.original.view.step(at)
            if step is not None:
                self._undefined = self._undefined & ~step.sets | step.blurs
        found = compare.registers(self.original.stage, self.moved.stage)
        last = self.original.view.step(first.at) if first.end is End.LEAVES else first.last
        if "flags" in found:
            one, two = found["flags"]
            gone = last is not None and (last.insn.flow_control in _CARRY_NO_FLAGS or last.loads_flags)
            if gone or not (one ^ two) & ~self._undefined:
                del found["flags"]
        if last is not None and last.loads_esp:
            found.pop("esp", None)
        return set(found)

    def _log(self, first: Run) -> str:
        one, two = self.original.stage.log, self.moved.stage.log
        return "" if one == two else _log(one, two)

    def _stack_fault(self, run: Run) -> bool:
        """True when an adaptor's own push hit a page that isn't there."""
        cpu = self.moved.stage.cpu
        fault = run.fault
        if fault is None or fault[0] != Vector.PF:
            return False
        return 0 <= (cpu.gpr(4) - cpu.cr2 + 64 & U32) < _SCRATCH

    def _scratch_memory(self) -> str:
        one, two = self.original.stage, self.moved.stage
        below = [*self._seen, one.cpu.gpr(4)]
        for found in compare.memory(one, two):
            if any(0 < (esp - found.address & U32) <= _SCRATCH for esp in below):
                continue
            page, offset = divmod(found.address, 0x1000)
            untouched = one.clean(page)[offset] == found.expected
            if untouched and any(0 < (top - found.address & U32) <= _SCRATCH for top in self._tops):
                continue
            return str(found)
        return ""

    def _further(self, names: set[str]) -> Outcome:
        """Go on until the kernel has overwritten what differs."""
        self.moved.on_step = (
            None if self.connected is None else _Watch(self.moved, self.connected, None, self._tops)
        )
        steps = 0
        listed = ", ".join(sorted(names))
        while steps < FURTHER:
            self._seen.append(self.original.stage.cpu.gpr(4))
            first = self.original.run(self.territory.outside, LIMIT)
            steps += len(first.path)
            run = self._follow(first)
            if first.end in (End.FAULT, End.ENDLESS, End.LOST):
                same = first.end is run.end and first.fault == run.fault
                return Outcome("" if same else f"{listed} changed and {self._ending(first, run)}", open=same)
            wrong = self._ending(first, run) or self._return_address(first, run) or self._log(first)
            if wrong:
                if run.end is End.FAULT and self._stack_fault(run):
                    return Outcome(open=True)
                return Outcome(f"{listed} changed, and then {wrong}")
            different = self._different(first)
            flow = first.last.insn.flow_control if first.last is not None else None
            if not different:
                wrong = self._scratch_memory()
                return Outcome(f"{listed} changed, and then {wrong}" if wrong else "", later=True)
            if not different <= _MAY_DIFFER or first.end is End.LEAVES or flow in _UNKNOWN:
                return Outcome(f"{listed} changed, and may be read at {first.at:#x}: {self._registers()}")
        return Outcome(open=True)


_CARRY_NO_FLAGS = (FlowControl.RETURN, FlowControl.INDIRECT_CALL)
_UNKNOWN = (FlowControl.RETURN, FlowControl.INDIRECT_CALL, FlowControl.INDIRECT_BRANCH)


@dataclass(slots=True)
class _Watch:
    """Sees each step of connected code: notes where slots call from, and spoils what a call may spoil."""

    runner: Runner
    connected: Connected
    setting: Setting | None
    tops: list[int]
    _call: Call | None = None
    _back: int = -1

    def __call__(self, step: Step) -> None:
        at, stage = step.address, self.runner.stage
        if at in self.connected.slots:
            self.tops.append(stage.cpu.gpr(4))
        if self.setting is None or not self.setting.seed & 1:
            return
        if at == self._back and self._call is not None:
            self._spoil(self._call)
            self._call = None
        elif at in self.connected.entries:
            self._call = self.connected.entries[at]
            self._back = int.from_bytes(stage.read(stage.cpu.gpr(4), 4), "little")

    def _spoil(self, call: Call) -> None:
        cpu = self.runner.stage.cpu
        assert self.setting is not None
        noise = mix(self.setting.seed, call.number)
        cpu.eflags = cpu.eflags & ~ARITHMETIC_FLAGS | noise & ARITHMETIC_FLAGS
        results = {place: result.type for result in call.results for place in result.places}
        for register in call.clobbers:
            if register not in results:
                noise = mix(noise, 1)
                cpu.set_gpr(_NUMBERS[register], noise)
        for place, kind in results.items():
            # A call in the instruction's own registers leaves alone what the instruction does.
            width = None if call.convention is Convention.NATIVE else _WIDTHS.get(kind)
            if width is not None and place in _NUMBERS:
                mask = (1 << width) - 1
                cpu.set_gpr(_NUMBERS[place], cpu.gpr(_NUMBERS[place]) & mask | noise & ~mask & U32)


def _fault(fault: tuple[int, bool, int]) -> str:
    vector, is_int, error = fault
    if vector < 0:
        return "a failure of the emulator"
    return f"INT {vector:#x}" if is_int else f"exception {vector}, error code {error:#x}"


def _record(expected: list[tuple[Step, bool]], found: list[tuple[Step, bool]]) -> str:
    for number, ((one, open_before), (two, open_now)) in enumerate(zip(expected, found, strict=False)):
        if one.key != two.key:
            return f"instruction {number} is `{two.insn}` instead of `{one.insn}`"
        if open_before != open_now:
            can = "can't come in any more" if open_before else "can come in now"
            return f"an interrupt {can} before instruction {number}, `{one.insn}`"
    if len(expected) != len(found):
        return f"{len(found)} instructions were executed instead of {len(expected)}"
    return ""


def _log(expected: list[tuple[object, ...]], found: list[tuple[object, ...]]) -> str:
    for one, two in zip(expected, found, strict=False):
        if one != two:
            return f"expected {_event(one)}, got {_event(two)}"
    if len(expected) > len(found):
        return f"expected {_event(expected[len(found)])}, which did not happen"
    return f"expected nothing, got {_event(found[len(expected)])}"


def _event(event: tuple[object, ...]) -> str:
    return " ".join(f"{part:#x}" if isinstance(part, int) else str(part) for part in event)
