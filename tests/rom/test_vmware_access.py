# SPDX-License-Identifier: GPL-2.0-only
"""Rules that the code of the vmware flavour keeps on every path, found by following each path.

A page fault at an instruction that reaches memory for the caller is reported as the call's own, and the
call is then made again: so there the stack must be as the call was made, and so must its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from iced_x86 import (
    Decoder,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from vmi import abi
from vmi.abi import Reloc
from vmi.hypervisor.callsite import reaches_out
from vmi.rom import layout
from vmi.rom.build import build
from vmi.rom.flavours.vmware import FLAVOUR

ROM = build("vmware")
OFFERED = [row for row in abi.CALLS if ROM.calls[row.number][0] is not Reloc.NONE]
REGISTERS = {name: getattr(Register, name.upper()) for name in abi.REGISTERS}
_WRITES = {OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE}
_STRING = {Mnemonic.INSB, Mnemonic.INSW, Mnemonic.INSD, Mnemonic.OUTSB, Mnemonic.OUTSW, Mnemonic.OUTSD}


@dataclass(frozen=True)
class Step:
    """An instruction on a path: bytes pushed before it, and the registers that hold other values."""

    instruction: Instruction
    depth: int
    changed: frozenset[int]


def paths(row: abi.Call) -> Iterator[Step]:
    """Every instruction of a call in every state that it is reached in, gates left out."""
    factory = InstructionInfoFactory()
    waiting = [(ROM.offset(row.name), 0, (), frozenset[int]())]
    seen = set()
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        at, depth, pushed, changed = state
        if layout.gate_number(at) is not None:
            assert (depth, changed) == (0, frozenset()), f"{row.name} comes to its gate changed"
            continue
        instruction = Decoder(32, ROM.image[at : at + 16], ip=at).decode()
        assert not instruction.is_invalid, hex(at)
        yield Step(instruction, depth, changed)
        written = {
            RegisterExt.full_register32(used.register)
            for used in factory.info(instruction).used_registers()
            if used.access in _WRITES
        } & set(REGISTERS.values())
        mnemonic = instruction.mnemonic
        if mnemonic in (Mnemonic.PUSH, Mnemonic.PUSHFD):
            kept = (
                instruction.op0_register if instruction.op_count and not changed & written else Register.NONE
            )
            kept = Register.NONE if kept in changed else kept
            depth, pushed = depth + 4, (*pushed, kept)
        elif mnemonic == Mnemonic.CALL:
            depth, pushed = depth + 4, (*pushed, Register.NONE)
        elif mnemonic == Mnemonic.POP:
            depth, (*rest, back) = depth - 4, pushed
            pushed = tuple(rest)
            into = instruction.op0_register
            changed = changed - {into} if back == into else changed | ({into} & set(REGISTERS.values()))
            written = set()
        changed |= frozenset(written)
        flow = instruction.flow_control
        if flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CALL, FlowControl.CONDITIONAL_BRANCH):
            waiting.append((instruction.near_branch_target, depth, pushed, changed))
        if flow in (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH):
            waiting.append((instruction.next_ip, depth, pushed, changed))
        if flow == FlowControl.RETURN and mnemonic == Mnemonic.RET:
            assert depth == 0, f"{row.name} returns with {depth} bytes on the stack"
            lost = {name for name, register in REGISTERS.items() if register in changed}
            assert not lost & set(row.preserves), f"{row.name} loses {lost & set(row.preserves)}"


@pytest.mark.parametrize("row", OFFERED, ids=lambda row: row.name)
def test_what_reaches_memory_for_the_caller_can_be_done_again(row: abi.Call) -> None:
    arguments = {REGISTERS[place] for arg in row.args for place in arg.places if place in REGISTERS}
    for step in paths(row):
        if not reaches_out(step.instruction) or not row.returns or step.instruction.mnemonic in _STRING:
            continue
        by_stack = step.instruction.memory_base == Register.ESP
        if by_stack and step.depth:
            continue  # what an instruction before it has read at the call's own depth
        assert step.depth == 0, f"{step.instruction} with {step.depth} bytes on the stack"
        later_half = step.instruction.memory_displacement == 4 and FLAVOUR.template(row).source.count("edx*8")
        if not later_half and not by_stack:
            assert not step.changed & arguments, f"{step.instruction} after a change of an argument"


@pytest.mark.parametrize("row", OFFERED, ids=lambda row: row.name)
def test_no_call_needs_more_than_32_bytes_of_stack(row: abi.Call) -> None:
    assert max(step.depth for step in paths(row)) <= 28, "a push or a call makes 4 more of it"


@pytest.mark.parametrize("row", OFFERED, ids=lambda row: row.name)
def test_words_are_reached_by_ss_from_where_the_code_runs(row: abi.Call) -> None:
    """No absolute address, and no DS: not even where the caller's is flat."""
    for step in paths(row):
        for n in range(step.instruction.op_count):
            if step.instruction.op_kind(n) == OpKind.MEMORY and step.instruction.mnemonic != Mnemonic.LEA:
                assert step.instruction.memory_base != Register.NONE, step.instruction
                if step.instruction.memory_displacement > 0x800:
                    assert step.instruction.memory_segment == Register.SS, step.instruction


def test_a_read_of_the_stack_comes_first_at_the_depth_of_the_call() -> None:
    """Where an argument on the stack is not there, nothing may have been stored yet."""
    for name in ("WriteGDTEntry", "WriteLDTEntry", "WriteIDTEntry"):
        reaching = [step.instruction for step in paths(abi.BY_NAME[name]) if reaches_out(step.instruction)]
        assert reaching[0].memory_base == Register.ESP and reaching[0].mnemonic == Mnemonic.CMP, name


def test_the_rom_has_no_code_of_its_own_state() -> None:
    """GetRelocationInfo reads the image only, and writes nothing: it may be asked at any time, for ever."""
    start = layout.BODIES
    code = Decoder(32, ROM.image[start : start + 0x40], ip=start)
    written = set()
    for instruction in code:
        for n in range(instruction.op_count):
            if instruction.op_kind(n) == OpKind.MEMORY:
                assert instruction.op1_kind == OpKind.MEMORY or instruction.mnemonic in (
                    Mnemonic.MOVZX,
                    Mnemonic.LEA,
                ), instruction
                written.add(instruction.mnemonic)
        if instruction.mnemonic == Mnemonic.RET:
            break
    assert written == {Mnemonic.MOVZX, Mnemonic.LEA}
