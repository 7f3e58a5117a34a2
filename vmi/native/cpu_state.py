# SPDX-License-Identifier: GPL-2.0-only
"""The state of a CPU between two instructions as named values, to be kept and put into another CPU.

It is the processor's own state by the processor's own names. What the emulator keeps besides (the flags in
their lazy form, mode bits collected from several registers, host addresses) follows from it, is made anew
and so never saved: a saved state holds nothing of the process it was saved in.

Upper halves of registers, which belong to 64-bit mode or to AVX, are not here: there is neither.

For the same CPU object there is a quicker way, see :func:`keep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from vmi.errors import UsageError
from vmi.native.bus import State
from vmi.native.cpu import Cpu
from vmi.native.engine import Register
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import GPR32, Seg

_DEBUG = (0, 1, 2, 3, 6, 7)
_FPU = (
    ("control", Register.FPU_CONTROL, 2),
    ("status", Register.FPU_STATUS, 2),
    ("tags", Register.FPU_TAGS, 2),
    ("opcode", Register.FPU_OPCODE, 2),
    ("code_segment", Register.FPU_CODE, 2),
    ("eip", Register.FPU_EIP, 8),
    ("data_segment", Register.FPU_DATA, 2),
    ("operand", Register.FPU_OPERAND, 8),
    ("mxcsr", Register.MXCSR, 4),
)  # name, register, bytes that the library gives and takes
_X87, _X87_SIZE = 8, 10  # registers, bytes of each
_XMM, _XMM_SIZE = 8, 16
_A20_BIT = 20
_ARMED = 0xFF  # bits of DR7 that enable breakpoints
#: What a CPU has besides its registers: its count, who is asked and told, what translations are made with.
_BESIDES = (
    "instructions", "failure", "bus", "pager", "store_watch", "enter_kernel", "on_pause", "on_control",
    "hidden_from", "nowhere", "uncached", "_on_cached", "_code_watch", "_code_changes", "told_cr2",
)  # fmt: skip
_besides = attrgetter(*_BESIDES)


@dataclass(frozen=True, repr=False)
class Kept:
    """What :func:`keep` gave."""

    registers: bytes
    dr7: int
    a20: bool
    watched: frozenset[int]
    straight: bytes
    besides: tuple[Any, ...]

    def __repr__(self) -> str:
        return "<Kept state of a CPU>"

    def asked(self) -> list[object]:
        """Who is asked and told by the CPU."""
        return [one for one in self.besides if not isinstance(one, int)]


def save(cpu: Cpu) -> State:
    """Give the state as JSON-able values.

    Numbers are as the processor has them, EFLAGS with the arithmetic flags; a segment is selector, base,
    limit in bytes and the descriptor's second dword. ``irq_shadow``: the instruction after STI or MOV SS is
    still to come. ``x87`` and ``xmm`` are hexadecimal, lowest byte first; the former by number, the FPU's
    status tells which of them is ST(0). ``tags`` are those of FNSTENV, ``eip`` to ``operand`` tell of the
    FPU's last instruction.

    :raises UsageError: the CPU is in the middle of an instruction.
    """
    _between_runs(cpu)
    return {
        "general": {name: cpu.gpr(number) for number, name in enumerate(GPR32)},
        "eip": cpu.eip,
        "eflags": cpu.eflags,
        "irq_shadow": cpu.irq_shadow,
        "segments": {seg.name.lower(): _from_segment(cpu.segment(seg)) for seg in Seg},
        "ldtr": _from_segment(cpu.ldt),
        "tr": _from_segment(cpu.tr),
        "gdtr": [cpu.gdt.base, cpu.gdt.limit],
        "idtr": [cpu.idt.base, cpu.idt.limit],
        **{f"cr{number}": cpu.cr(number) for number in (0, 2, 3, 4)},
        **{f"dr{number}": cpu.dr(number) for number in _DEBUG},
        "efer": cpu.efer,
        "sysenter": list(cpu.fast_call_target),
        "a20": bool(cpu.a20_mask >> _A20_BIT & 1),
        "fpu": {
            name: int.from_bytes(cpu.extended(register, size), "little") for name, register, size in _FPU
        },
        "x87": [cpu.extended(Register.FPU_0 + n, _X87_SIZE).hex() for n in range(_X87)],
        "xmm": [cpu.extended(Register.XMM_0 + n, _XMM_SIZE).hex() for n in range(_XMM)],
    }


def load(cpu: Cpu, state: State) -> None:
    """Put a state that :func:`save` gave into a CPU; it forgets all that it has translated.

    :raises UsageError: the CPU is in the middle of an instruction.
    :raises KeyError, TypeError, ValueError: that is no state that :func:`save` gave.
    """
    _between_runs(cpu)
    cpu.set_a20(state["a20"])
    cpu.efer = state["efer"]
    cpu.set_cr(4, state["cr4"])
    cpu.set_cr(3, state["cr3"])
    cpu.set_cr(0, state["cr0"])
    cpu.cr2 = state["cr2"]
    cpu.eflags = state["eflags"]  # before the segments: what they are depends on its VM bit
    for seg in Seg:
        cpu.set_segment(seg, _segment(state["segments"][seg.name.lower()]))
    cpu.ldt, cpu.tr = _segment(state["ldtr"]), _segment(state["tr"])
    cpu.gdt, cpu.idt = TableRegister(*state["gdtr"]), TableRegister(*state["idtr"])
    cs, esp, eip = state["sysenter"]
    cpu.fast_call_target = (cs, esp, eip)
    cpu.load_dr(7, 0)  # breakpoints go before their addresses change
    for number in _DEBUG[:-1]:
        cpu.set_dr(number, state[f"dr{number}"])
    cpu.load_dr(7, state["dr7"])
    for name, register, size in _FPU:
        cpu.set_extended(register, state["fpu"][name].to_bytes(size, "little"))
    _load_each(cpu, Register.FPU_0, state["x87"], _X87, _X87_SIZE)
    _load_each(cpu, Register.XMM_0, state["xmm"], _XMM, _XMM_SIZE)
    for number, name in enumerate(GPR32):
        cpu.set_gpr(number, state["general"][name])
    cpu.eip = state["eip"]
    cpu.irq_shadow = state["irq_shadow"]
    cpu.forget_translations()


def keep(cpu: Cpu) -> Kept:
    """Keep all that this CPU object is, in the form that it has it, for :func:`put_back`.

    Cached translations of addresses are dropped, as they are when it is put back, so that the CPU goes on
    in the same way both times. Translated code stays.

    :raises UsageError: the CPU is in the middle of an instruction.
    """
    _between_runs(cpu)
    dr7 = cpu.dr(7)
    if dr7 & _ARMED:  # a breakpoint of the emulator's is no number that could be put back
        cpu.load_dr(7, 0)
    registers = cpu.freeze()
    if dr7 & _ARMED:
        cpu.load_dr(7, dr7)
    cpu.flush_tlb()
    return Kept(
        registers=registers,
        dr7=dr7,
        a20=bool(cpu.a20_mask >> _A20_BIT & 1),
        watched=frozenset(cpu.watched_pages),
        straight=cpu.straight.image,
        besides=_besides(cpu),
    )


def put_back(cpu: Cpu, kept: Kept) -> None:
    """Let a CPU be what it was when :func:`keep` kept it; memory is somebody else's business.

    :raises UsageError: the CPU is in the middle of an instruction.
    """
    _between_runs(cpu)
    if cpu.dr(7) & _ARMED:
        cpu.load_dr(7, 0)
    cpu.thaw(kept.registers)
    if kept.dr7 & _ARMED:
        cpu.load_dr(7, kept.dr7)
    if kept.a20 != bool(cpu.a20_mask >> _A20_BIT & 1):
        cpu.set_a20(kept.a20)
    for name, value, now in zip(_BESIDES, kept.besides, _besides(cpu), strict=True):
        if value is not now:
            setattr(cpu, name, value)
    cpu.straight.image = kept.straight
    cpu.share()
    if cpu.watched_pages != kept.watched:
        cpu.watch_pages(set(kept.watched))
    cpu.flush_tlb()


def _between_runs(cpu: Cpu) -> None:
    if cpu.running:
        raise UsageError(
            "a CPU's state can be saved and loaded between instructions only, but one is under way"
        )


def _load_each(cpu: Cpu, first: Register, values: list[str], count: int, size: int) -> None:
    data = [bytes.fromhex(value) for value in values]
    if [len(each) for each in data] != [size] * count:  # more or fewer bytes would be those of others
        raise ValueError(f"{first.name} must be {count} registers of {size} bytes")
    for n, each in enumerate(data):
        cpu.set_extended(first + n, each)


def _from_segment(segment: Segment) -> list[int]:
    return [segment.selector, segment.base, segment.limit, segment.flags]


def _segment(fields: list[int]) -> Segment:
    return Segment(*fields)
