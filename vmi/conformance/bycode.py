# SPDX-License-Identifier: GPL-2.0-only
"""Cases that read a ROM's code instead of running it, and whether a ROM needs a hypervisor that is not here.

They find what is wrong on a way that no run takes, and they are most of what can be told of a ROM whose
hypervisor is somewhere else. What code does can't be told in general: only what is certain is a fault
(:mod:`vmi.rom.ways`), so where they pass, the requirement is still undecided.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from iced_x86 import Code, FlowControl, Instruction, Mnemonic, OpKind, Register

from vmi import abi
from vmi.abi import Call, FlagsEffect, Reloc
from vmi.conformance.case import Body, Case, Findings
from vmi.conformance.layout import Paging
from vmi.conformance.rig import Broken, Rig, Unfit
from vmi.conformance.subject import End, Stop
from vmi.rom import flow
from vmi.rom.ways import Return, Ways, go

_ONCE = frozenset({Paging.OFF})  # code is the same everywhere
_KEPT = ("ebx", "esi", "edi", "ebp")
_SEGMENTS = ("ds", "es", "fs", "gs", "ss")
_WINDOW = range(abi.SCAN_START, 0x100000)
_HYPERCALLS = (Mnemonic.VMCALL, Mnemonic.VMMCALL, Mnemonic.SYSENTER, Mnemonic.SYSCALL)
_GOES = (
    FlowControl.CALL,
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_CALL,
    FlowControl.INDIRECT_BRANCH,
)


def made() -> Iterator[Case]:
    """One case for each call, and those about both entries of the ROM."""
    yield _case("Init", "rom", "by its code", ("VMI-Init-01", "VMI-Init-03"), _init)
    yield _case("GetReloc", "rom", "by its code", ("VMI-GetReloc-07",), _relocation)
    for call in abi.CALLS:
        yield _case(
            call.name,
            str(call.group),
            "by its code",
            ("VMI-Call-01", "VMI-Call-02", "VMI-Call-03"),
            partial(discipline, call=call),
            call.level,
        )


def _case(
    subject: str, group: str, name: str, requirements: tuple[str, ...], body: Body, level: int = 0
) -> Case:
    return Case(
        f"{subject}/{name}",
        requirements,
        subject,
        group,
        level,
        body,
        _ONCE,
        begun=False,
        alone=True,
        refutes=True,
    )


def image_of(rig: Rig) -> bytes:
    """The ROM as the guest sees it. :raises Broken: there is none."""
    if not rig.rom:
        raise Broken(Stop(End.REFUSED), "looking for a ROM between C0000h and DFFFFh")
    return rig.image()


def _offset(rig: Rig, image: bytes, name: str) -> int:
    """Where a call's entry is in the image. :raises Unfit: nowhere."""
    rig.need(name)
    offset = rig.entry(name)[1] - rig.rom
    if not 0 <= offset < len(image):
        raise Unfit("its entry is not in the ROM")
    return offset


def discipline(rig: Rig, found: Findings, *, call: Call) -> None:
    """On every way through its code, what must survive does, and the stack is left as it was."""
    image = image_of(rig)
    ways = _ways(image, _offset(rig, image, call.name))
    if call.returns:
        _ends(found, ways)
    kept = tuple(name for name in call.preserves if name != "esp")
    _judge(found, ways, kept, _SEGMENTS, directed=call.flags is not FlagsEffect.FROM_FRAME)


def _init(rig: Rig, found: Findings) -> None:
    """VMI_Init keeps registers and doesn't write to the ROM; no code is for one place in the window alone."""
    image = image_of(rig)
    ways = _ways(image, abi.INIT_OFFSET)
    _ends(found, ways)
    _judge(found, ways, _KEPT, (), directed=True)
    for at in ways.stores:
        found.true(False, f"it must not write to the ROM's memory, but the instruction at {at:#x} does")
    fixed = {"VMI_Init": abi.INIT_OFFSET, "GetRelocationInfo": abi.GET_RELOC_OFFSET}
    for name, offset in {**fixed, **dict(entries(rig, len(image)))}.items():
        for at, instruction in flow.reachable(image, offset).items():
            place = _fixed_place(instruction) or 0
            found.true(
                place not in _WINDOW,
                f"code must work anywhere, but the instruction at {at:#x} of {name} names {place:#x}",
            )


def _relocation(rig: Rig, found: Findings) -> None:
    """GetRelocationInfo keeps registers, on every way through its code."""
    ways = _ways(image_of(rig), abi.GET_RELOC_OFFSET)
    _ends(found, ways)
    _judge(found, ways, _KEPT, _SEGMENTS, directed=True)


def _ways(image: bytes, offset: int) -> Ways:
    ways = go(image, offset)
    if not ways.whole:
        raise Unfit("its code has too many ways to follow them all")
    return ways


def _ends(found: Findings, ways: Ways) -> None:
    found.true(bool(ways.returns or ways.ends), "no way through its code comes to an end")


def _judge(
    found: Findings, ways: Ways, kept: tuple[str, ...], segments: tuple[str, ...], *, directed: bool
) -> None:
    for back in ways.returns:
        found.true(
            back.pops == 0, f"the return at {back.at:#x} takes {back.pops} bytes off the caller's stack"
        )
        if back.off is not None:
            found.true(
                back.off == 0,
                f"at the return at {back.at:#x} ESP is {back.off:+} bytes from the return address",
            )
        for name in (*kept, *segments):
            _survives(found, back, name, name.upper())
        if directed:
            _survives(found, back, "df", "the direction flag")


def _survives(found: Findings, back: Return, name: str, what: str) -> None:
    value = back.registers[name]
    moved = value.kind in ("stack", "rom") or (value.kind == "was" and value.name != name)
    found.true(
        value.kind != "changed",
        f"{what} must survive, but the instruction at {value.number:#x} changes it, "
        f"and the code returns at {back.at:#x}",
    )
    found.true(not moved, f"{what} must survive, but has another value when the code returns at {back.at:#x}")


def entries(rig: Rig, size: int) -> Iterator[tuple[str, int]]:
    """Calls, and where their entries are in an image of ``size`` bytes. :raises Broken: it isn't told."""
    for call in abi.CALLS:
        kind, address = rig.entry(call.name)
        if kind in (Reloc.CALL_REL, Reloc.JUMP_REL) and 0 <= address - rig.rom < size:
            yield call.name, address - rig.rom


def _fixed_place(i: Instruction) -> int | None:
    """An address in an instruction that is the same wherever the code is."""
    if i.is_jmp_far or i.is_call_far:
        return i.far_branch32
    for number in range(i.op_count):
        if i.op_kind(number) == OpKind.MEMORY and i.memory_base == i.memory_index == Register.NONE:
            return i.memory_displacement & 0xFFFF_FFFF
    return None


def needs_hypervisor(rig: Rig) -> str:
    """What a ROM calls out by, and from where: it needs a hypervisor then; "" if it does without.

    The guest has been switched on, and VMI_Init has not been called.
    """
    if not rig.rom:
        return ""
    image = image_of(rig)
    try:
        known = {"VMI_Init": abi.INIT_OFFSET, **dict(entries(rig, len(image)))}
    except Broken:
        return ""
    for name, offset in known.items():
        for at, instruction in flow.reachable(image, offset).items():
            if _calls_out(instruction, len(image)):
                return f"{name} calls out by {flow.text(instruction)} at {at:#x}"
    return ""


def _calls_out(i: Instruction, size: int) -> bool:
    if i.code == Code.INT_IMM8 or i.mnemonic in _HYPERCALLS:
        return True
    target = flow.branch_target(i)
    if target is not None:
        return target >= size
    far = i.is_jmp_far or i.is_call_far or i.is_jmp_far_indirect or i.is_call_far_indirect
    absolute = i.flow_control in _GOES and i.op0_kind == OpKind.MEMORY and i.memory_base == Register.NONE
    return far or absolute
